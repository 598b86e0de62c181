//! What stands between the loopback address and the routes: which `Host` is served, and what pages of other origins may
//! do. It knows no route.

use std::net::IpAddr;

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode, header, uri::Authority},
    middleware::{self, Next},
    response::Response,
};
use ruma::api::error::ErrorKind;
use tower_http::cors::{Any, CorsLayer};

use super::error::render;

/// The `Host` headers that are served. A page of a foreign domain whose name was re-bound to this machine's address
/// sends its own domain there, so refusing unknown names keeps it out.
#[derive(Debug, Clone, Copy)]
pub struct Hosts {
    bound: IpAddr,
}

impl Hosts {
    /// `localhost`, the loopback addresses and the address that is listened on. A listener on all addresses serves
    /// under any IP address: no name can be re-bound to those.
    pub fn of(bound: IpAddr) -> Self {
        Self { bound }
    }

    /// Whether a `Host` header's value is served.
    pub fn serves(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        if authority.as_str().contains('@') {
            return false;
        }
        let name = authority.host();
        if name.eq_ignore_ascii_case("localhost") {
            return true;
        }
        let bare = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        match bare.unwrap_or(name).parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address == self.bound || self.bound.is_unspecified(),
            Err(_) => false,
        }
    }
}

/// Refuses requests whose `Host` is not served: 403 `M_FORBIDDEN`.
pub fn only_hosts(router: Router, hosts: Hosts) -> Router {
    router.layer(middleware::from_fn_with_state(hosts, check_host))
}

/// Answers as client-server API section "Web Browser Clients" requires: any page may send requests, but without an
/// access token it gets nothing.
pub fn with_cors(router: Router) -> Router {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS])
        .allow_headers([
            header::HeaderName::from_static("x-requested-with"),
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
        ]);
    router.layer(cors)
}

async fn check_host(State(hosts): State<Hosts>, request: Request, next: Next) -> Response {
    if is_served(&request, hosts) {
        return next.run(request).await;
    }
    render(
        StatusCode::FORBIDDEN,
        ErrorKind::Forbidden,
        "this node is not served under that host name; use 127.0.0.1 or localhost".to_owned(),
    )
}

/// HTTP/2 has the name in the request's URI, HTTP/1 in a header; there must be one, and with both, both must be served.
fn is_served(request: &Request, hosts: Hosts) -> bool {
    let header = request.headers().get(header::HOST);
    let header = header.map(|host| host.to_str().unwrap_or_default());
    let authority = request.uri().authority().map(Authority::as_str);
    let mut named = header.into_iter().chain(authority).peekable();
    named.peek().is_some() && named.all(|host| hosts.serves(host))
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, routing::get};
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn hosts_are_known_by_address_and_localhost_only() {
        let loopback = Hosts::of([127, 0, 0, 1].into());
        let lan = Hosts::of([192, 168, 1, 5].into());
        let all = Hosts::of([0, 0, 0, 0].into());
        let cases = [
            ("localhost", [true, true, true]),
            ("LOCALHOST:8008", [true, true, true]),
            ("127.0.0.1:8008", [true, true, true]),
            ("[::1]:8008", [true, true, true]),
            ("[::1]", [true, true, true]),
            ("192.168.1.5:8008", [false, true, true]),
            ("192.168.1.6", [false, false, true]),
            ("[fe80::1]", [false, false, true]),
            ("evil.example", [false, false, false]),
            ("evil.example:8008", [false, false, false]),
            ("localhost.evil.example", [false, false, false]),
            ("127.0.0.1.evil.example", [false, false, false]),
            ("localhost@evil.example", [false, false, false]),
            ("evil@localhost", [false, false, false]),
            ("localhost,evil.example", [false, false, false]),
            ("", [false, false, false]),
            (":8008", [false, false, false]),
        ];
        for (host, expected) in cases {
            assert_eq!([loopback, lan, all].map(|hosts| hosts.serves(host)), expected, "{host}");
        }
    }

    async fn answer(method: Method, uri: &str, headers: &[(&str, &str)]) -> Response {
        let router = Router::new().route("/", get(|| async { "served" }));
        let router = only_hosts(with_cors(router), Hosts::of([127, 0, 0, 1].into()));
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn a_foreign_host_is_refused_before_anything_else() {
        type Case<'a> = (Method, &'a str, &'a [(&'a str, &'a str)], u16);
        let cases: [Case<'_>; 6] = [
            (Method::GET, "/", &[("host", "127.0.0.1:8008")], 200),
            (Method::GET, "http://localhost/", &[], 200),
            (Method::GET, "/", &[], 403),
            (Method::GET, "/", &[("host", "evil.example")], 403),
            (Method::GET, "http://evil.example/", &[("host", "localhost")], 403),
            (
                Method::OPTIONS,
                "/",
                &[("host", "evil.example"), ("origin", "http://evil.example")],
                403,
            ),
        ];
        for (method, uri, headers, status) in cases {
            let answer = answer(method, uri, headers).await;
            assert_eq!(answer.status().as_u16(), status, "{uri} {headers:?}");
            if status == 403 {
                let body = axum::body::to_bytes(answer.into_body(), 1000).await.unwrap();
                assert!(str::from_utf8(&body).unwrap().contains("M_FORBIDDEN"));
            }
        }
    }

    #[tokio::test]
    async fn preflight_and_answers_carry_the_headers_that_the_specification_names() {
        let host = ("host", "localhost");
        let preflight = [
            host,
            ("origin", "https://app.example"),
            ("access-control-request-method", "PUT"),
        ];
        let answers = [
            answer(Method::OPTIONS, "/", &preflight).await,
            answer(Method::GET, "/", &[host, ("origin", "https://app.example")]).await,
        ];
        for answer in &answers {
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.headers()["access-control-allow-origin"], "*");
            assert!(!answer.headers().contains_key("access-control-allow-credentials"));
        }
        let header = |name: &str| answers[0].headers()[name].to_str().unwrap().to_ascii_lowercase();
        for method in ["get", "post", "put", "delete", "options"] {
            assert!(header("access-control-allow-methods").contains(method), "{method}");
        }
        for name in ["x-requested-with", "content-type", "authorization"] {
            assert!(header("access-control-allow-headers").contains(name), "{name}");
        }
    }
}
