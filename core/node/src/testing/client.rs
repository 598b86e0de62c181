//! A JSON client that talks to a node's own router, without a socket.

use axum::{Router, body::Body};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use serde_json::{Value, json};
use tower::ServiceExt;

/// A JSON client on a node's own router. Cheap to clone; clones are the same device.
#[derive(Clone)]
pub(crate) struct Client {
    router: Router,
    /// Its access token, once it has one.
    pub(crate) token: Option<String>,
    /// Its user, once logged in.
    pub(crate) user_id: String,
    /// Its device, once logged in.
    pub(crate) device_id: String,
}

impl Client {
    /// A client that is not logged in.
    pub(super) fn new(router: Router) -> Self {
        Self {
            router,
            token: None,
            user_id: String::new(),
            device_id: String::new(),
        }
    }

    /// The first device of a new user, with password `secret`.
    pub(crate) async fn registered(router: Router, localpart: &str) -> Self {
        let mut client = Self::new(router);
        let body = json!({"username": localpart, "password": "secret", "auth": {"type": "m.login.dummy"}});
        let (status, answer) = client.post("/_matrix/client/v3/register", body).await;
        assert_eq!(status, StatusCode::OK, "{answer}");
        client.adopt(&answer);
        client
    }

    /// The same device, on another router.
    pub(super) fn on(&self, router: Router) -> Self {
        Self { router, ..self.clone() }
    }

    /// Takes what a login or a registration answered.
    pub(super) fn adopt(&mut self, answer: &Value) {
        self.token = Some(answer["access_token"].as_str().unwrap().to_owned());
        self.user_id = answer["user_id"].as_str().unwrap().to_owned();
        self.device_id = answer["device_id"].as_str().unwrap().to_owned();
    }

    /// Sends any request and returns the whole response.
    pub(crate) async fn raw(&self, method: Method, path: &str, body: Vec<u8>) -> Response<Bytes> {
        let headers = [(header::CONTENT_TYPE.as_str(), "application/json")];
        self.raw_with(method, path, &headers, body).await
    }

    /// [`Client::raw`] with headers of one's own.
    pub(crate) async fn raw_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Response<Bytes> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self
            .router
            .clone()
            .oneshot(request.body(Body::from(body)).unwrap())
            .await
            .unwrap();
        let (head, body) = response.into_parts();
        Response::from_parts(head, axum::body::to_bytes(body, usize::MAX).await.unwrap())
    }

    async fn json(&self, method: Method, path: &str, body: Vec<u8>) -> (StatusCode, Value) {
        let response = self.raw(method, path, body).await;
        let value = serde_json::from_slice(response.body()).unwrap_or(Value::Null);
        (response.status(), value)
    }

    /// `GET path`; the path holds the query too.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, Vec::new()).await
    }

    /// `POST path` with a JSON body.
    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::POST, path, body.to_string().into_bytes()).await
    }

    /// `PUT path` with a JSON body.
    pub(crate) async fn put(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.json(Method::PUT, path, body.to_string().into_bytes()).await
    }

    /// `DELETE path` without a body.
    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.json(Method::DELETE, path, Vec::new()).await
    }

    /// [`Client::get`] that must succeed.
    pub(crate) async fn get_ok(&self, path: &str) -> Value {
        ok(path, self.get(path).await)
    }

    /// [`Client::post`] that must succeed.
    pub(crate) async fn post_ok(&self, path: &str, body: Value) -> Value {
        ok(path, self.post(path, body).await)
    }

    /// [`Client::put`] that must succeed.
    pub(crate) async fn put_ok(&self, path: &str, body: Value) -> Value {
        ok(path, self.put(path, body).await)
    }
}

fn ok(path: &str, (status, answer): (StatusCode, Value)) -> Value {
    assert_eq!(status, StatusCode::OK, "{path}: {answer}");
    answer
}

/// Asserts that a request was refused with this status and Matrix error code.
#[track_caller]
pub(crate) fn assert_refused((status, answer): (StatusCode, Value), expected: (u16, &str)) {
    assert_eq!(
        (status.as_u16(), answer["errcode"].as_str().unwrap_or("")),
        expected,
        "{answer}"
    );
}

/// Escapes one path segment or query value: room ids and aliases hold `!`, `#`, `$` and `:`.
pub(crate) fn escape(segment: &str) -> String {
    let mut escaped = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(byte.into()),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}
