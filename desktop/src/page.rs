//! The page: what this node is, for whoever sits at the machine. Its files are part of the program; its one source of
//! data cannot be read by pages of other origins, and it changes nothing.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use kith_node::identity::qr_svg;
use serde::{Deserialize, Serialize};

use crate::{
    control::{Report, Surface},
    error::one_line,
};

/// How long a page waits for news before it is given the same again.
const LONGEST_WAIT: Duration = Duration::from_secs(25);

/// Nothing from elsewhere runs or loads here, and nobody frames it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page shows.
#[derive(Serialize)]
struct News {
    /// Changes with anything else here.
    tag: String,
    /// The ticket as an SVG image.
    qr: String,
    #[serde(flatten)]
    report: Report,
}

/// The page's last news.
#[derive(Deserialize)]
struct After {
    after: Option<String>,
}

/// The page and its data.
pub(crate) fn routes(surface: Surface) -> Router {
    let file =
        |kind: &'static str, text: &'static str| get(move || async move { ([(header::CONTENT_TYPE, kind)], text) });
    Router::new()
        .route("/", get(page))
        .route(
            "/_kith/page/style.css",
            file("text/css; charset=utf-8", include_str!("../ui/style.css")),
        )
        .route(
            "/_kith/page/page.js",
            file("text/javascript; charset=utf-8", include_str!("../ui/page.js")),
        )
        .route(
            "/_kith/page/icon.svg",
            file("image/svg+xml", include_str!("../ui/icon.svg")),
        )
        .route("/_kith/page/news", get(news))
        .layer(middleware::from_fn(guard))
        .with_state(surface)
}

/// The page with its first news inside, so that it is whole as soon as it is there.
async fn page(State(surface): State<Surface>) -> Response {
    let news = look(&surface).await.and_then(|news| Ok(serde_json::to_string(&news)?));
    match news {
        // Inside a script element only `<` can end the data; in JSON it stands in strings alone.
        Ok(json) => {
            let html = include_str!("../ui/index.html").replacen("NEWS", &json.replace('<', "\\u003c"), 1);
            ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], html).into_response()
        }
        Err(error) => failed(&*error),
    }
}

/// The status, at once when it is other than the page's, else as soon as something happens.
async fn news(State(surface): State<Surface>, Query(After { after }): Query<After>) -> Response {
    // Listening starts before looking, so that nothing falls in between.
    let mut changes = surface.node.changes();
    let now = match look(&surface).await {
        Ok(now) if Some(&now.tag) == after.as_ref() => {
            // Both ends of the wait are answered alike.
            let _ = tokio::time::timeout(LONGEST_WAIT, changes.next()).await;
            look(&surface).await
        }
        outcome => outcome,
    };
    match now {
        Ok(news) => Json(news).into_response(),
        Err(error) => failed(&*error),
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Response {
    tracing::error!(error = one_line(error), "the page's status failed");
    (StatusCode::INTERNAL_SERVER_ERROR, one_line(error)).into_response()
}

async fn look(surface: &Surface) -> Result<News, Box<dyn std::error::Error + Send + Sync>> {
    let mut report = surface.report().await?;
    // The page shows names, peers and rooms to whoever sits here. What people reported is for the owner's command line.
    report.node.reports.clear();
    let mut hasher = DefaultHasher::new();
    serde_json::to_string(&report)?.hash(&mut hasher);
    Ok(News {
        tag: format!("{:016x}", hasher.finish()),
        qr: qr_svg(&report.node.ticket)?,
        report,
    })
}

/// Refuses what other origins ask, and forbids browsers to lend the page to them.
async fn guard(request: Request, next: Next) -> Response {
    if !is_own(request.headers()) {
        return (StatusCode::FORBIDDEN, "this page is for its own origin only").into_response();
    }
    let mut response = next.run(request).await;
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (
            header::HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            header::HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Whether a request comes from the page itself, from a person who typed the address, or from no browser at all. Pages
/// of other origins could not read the answers anyway, for want of CORS headers; they need not even cause them.
fn is_own(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // Following a link from elsewhere shows the page to the person, not to the other origin.
    let navigates = text("sec-fetch-mode") == Some("navigate") && text("sec-fetch-dest") == Some("document");
    let fetch_is_own = matches!(text("sec-fetch-site"), None | Some("same-origin" | "none")) || navigates;
    let origin_is_own = match (text("origin"), text("host")) {
        (None, _) => true,
        (Some(origin), Some(host)) => origin.strip_prefix("http://") == Some(host),
        (Some(_), None) => false,
    };
    fetch_is_own && origin_is_own
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_is_answered() {
        let cases: [(&[(&'static str, &'static str)], bool); 9] = [
            (&[("host", "127.0.0.1:8008")], true),
            (
                &[
                    ("sec-fetch-site", "none"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "document"),
                ],
                true,
            ),
            (&[("sec-fetch-site", "same-origin")], true),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "document"),
                ],
                true,
            ),
            (
                &[
                    ("sec-fetch-site", "cross-site"),
                    ("sec-fetch-mode", "navigate"),
                    ("sec-fetch-dest", "iframe"),
                ],
                false,
            ),
            (
                &[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")],
                false,
            ),
            (&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "cors")], false),
            (&[("host", "127.0.0.1:8008"), ("origin", "http://127.0.0.1:8008")], true),
            (&[("host", "127.0.0.1:8008"), ("origin", "http://127.0.0.1:9")], false),
        ];
        for (headers, expected) in cases {
            let map = headers
                .iter()
                .map(|(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(is_own(&map.collect()), expected, "{headers:?}");
        }
    }
}
