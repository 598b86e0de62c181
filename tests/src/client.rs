//! A plain JSON client of the client-server API, for scenarios that need exact requests. Encryption is the interop
//! suite's business.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use reqwest::Method;
use serde_json::{Value, json};

use crate::within;

/// `{"room":{"timeline":{"limit":1000}}}`, as a query wants it.
const WHOLE_TIMELINES: &str = "%7B%22room%22%3A%7B%22timeline%22%3A%7B%22limit%22%3A1000%7D%7D%7D";

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The JSON body, or null.
    pub body: Value,
}

impl Answer {
    /// The body of a successful answer.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// The Matrix error code.
    pub fn errcode(&self) -> &str {
        self.body["errcode"].as_str().unwrap_or_default()
    }
}

/// A logged-in device. It remembers where its sync stands.
pub struct Client {
    http: reqwest::Client,
    base: String,
    /// The access token.
    pub token: String,
    /// The user's full id.
    pub user_id: String,
    /// The device id.
    pub device_id: String,
    since: Option<String>,
    transaction: AtomicU64,
}

impl Client {
    /// Logs in with a password.
    pub async fn log_in(base: &str, user: &str, password: &str) -> Self {
        Self::log_in_with(reqwest::Client::new(), base, user, password).await
    }

    /// Logs in over a node's Unix socket, which stands in no network.
    pub async fn log_in_over(socket: &Path, user: &str, password: &str) -> Self {
        let http = reqwest::Client::builder().unix_socket(socket).build();
        Self::log_in_with(http.expect("a client"), "http://localhost", user, password).await
    }

    async fn log_in_with(http: reqwest::Client, base: &str, user: &str, password: &str) -> Self {
        let body = json!({
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user},
            "password": password,
        });
        let base = base.trim_end_matches('/').to_owned();
        let answer = http
            .post(format!("{base}/_matrix/client/v3/login"))
            .json(&body)
            .send()
            .await
            .expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        let text = |key: &str| {
            answer[key]
                .as_str()
                .unwrap_or_else(|| panic!("login failed: {answer}"))
                .to_owned()
        };
        let (token, user_id, device_id) = (text("access_token"), text("user_id"), text("device_id"));
        Self {
            http,
            base,
            token,
            user_id,
            device_id,
            since: None,
            transaction: AtomicU64::new(0),
        }
    }

    /// One request under `/_matrix/client/v3`, or under `/` if the path starts with `/_`.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> Answer {
        self.try_request(method, path, body).await.expect("an answer")
    }

    /// [`Client::request`] to a node that may end meanwhile: `None` if the whole answer did not arrive.
    pub async fn try_request(&self, method: Method, path: &str, body: Option<&Value>) -> Option<Answer> {
        let url = if path.starts_with("/_") {
            format!("{}{path}", self.base)
        } else {
            format!("{}/_matrix/client/v3{path}", self.base)
        };
        let mut request = self.http.request(method, url).bearer_auth(&self.token);
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = within("an answer", request.send()).await.ok()?;
        let status = response.status().as_u16();
        let bytes = within("the answer's body", response.bytes()).await.ok()?;
        Some(Answer {
            status,
            body: serde_json::from_slice(&bytes).unwrap_or(Value::Null),
        })
    }

    /// GET.
    pub async fn get(&self, path: &str) -> Answer {
        self.request(Method::GET, path, None).await
    }

    /// POST.
    pub async fn post(&self, path: &str, body: Value) -> Answer {
        self.request(Method::POST, path, Some(&body)).await
    }

    /// PUT.
    pub async fn put(&self, path: &str, body: Value) -> Answer {
        self.request(Method::PUT, path, Some(&body)).await
    }

    /// Creates a room and returns its id.
    pub async fn create_room(&self, body: Value) -> String {
        let answer = self.post("/createRoom", body).await.ok();
        answer["room_id"].as_str().expect("a room id").to_owned()
    }

    /// Invites another, who joins, and each hears the other. Returns the room's id.
    pub async fn talk_to(&mut self, other: &mut Self) -> String {
        let room = self
            .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [other.user_id]}))
            .await;
        while other.invited().await != room {}
        other.post(&format!("/join/{room}"), json!({})).await.ok();
        let texts = ["hello".to_owned(), "and back".to_owned()];
        self.send_text(&room, &texts[0]).await;
        other.texts_until(&room, &texts[..1]).await;
        other.send_text(&room, &texts[1]).await;
        self.texts_until(&room, &texts).await;
        room
    }

    /// Uploads a file, and returns its server and id, parted by a slash.
    pub async fn upload(&self, bytes: Vec<u8>) -> String {
        let url = format!("{}/_matrix/media/v3/upload", self.base);
        let request = self.http.post(url).bearer_auth(&self.token).body(bytes);
        let answer = within("the upload", request.send()).await.expect("an answer");
        let answer: Value = answer.json().await.expect("JSON");
        let uri = answer["content_uri"].as_str().expect("an address");
        uri.trim_start_matches("mxc://").to_owned()
    }

    /// Downloads a file, of this node or another.
    pub async fn download(&self, media: &str) -> Vec<u8> {
        let url = format!(
            "{}/_matrix/client/v1/media/download/{media}?timeout_ms=60000",
            self.base
        );
        let request = self.http.get(url).bearer_auth(&self.token);
        let answer = within("the download", request.send()).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        within("the whole file", answer.bytes()).await.expect("bytes").to_vec()
    }

    /// Sends a text message and returns its event id.
    pub async fn send_text(&self, room: &str, text: &str) -> String {
        let answer = self.try_send_text(room, text).await.ok();
        answer["event_id"].as_str().expect("an event id").to_owned()
    }

    /// Sends a text message, whatever comes of it.
    pub async fn try_send_text(&self, room: &str, text: &str) -> Answer {
        let number = self.transaction.fetch_add(1, Ordering::Relaxed);
        let path = format!("/rooms/{room}/send/m.room.message/{}-{number}", self.device_id);
        self.put(&path, json!({"msgtype": "m.text", "body": text})).await
    }

    /// One incremental sync from where this client stands (the first is an initial one). Timelines come whole: a client of
    /// tests does not page back.
    pub async fn sync(&mut self, timeout_ms: u64) -> Value {
        let since = self
            .since
            .as_ref()
            .map(|since| format!("&since={since}"))
            .unwrap_or_default();
        let answer = self
            .get(&format!("/sync?timeout={timeout_ms}&filter={WHOLE_TIMELINES}{since}"))
            .await
            .ok();
        self.since = Some(answer["next_batch"].as_str().expect("a token").to_owned());
        answer
    }

    /// Syncs until `found` says yes to an answer, and returns what it made of it.
    pub async fn sync_until<T>(&mut self, what: &str, mut found: impl FnMut(&Value) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(value) = found(&self.sync(20_000).await) {
                    return value;
                }
            }
        };
        within(what, waiting).await
    }

    /// Syncs until an invite to any room arrives, and returns the room's id.
    pub async fn invited(&mut self) -> String {
        self.sync_until("an invite", |sync| {
            sync["rooms"]["invite"].as_object()?.keys().next().cloned()
        })
        .await
    }

    /// Syncs until every one of `bodies` stood in the timeline of `room`, and returns all message bodies seen, in order.
    pub async fn texts_until(&mut self, room: &str, bodies: &[String]) -> Vec<String> {
        let mut seen: Vec<String> = Vec::new();
        let room = room.to_owned();
        self.sync_until(&format!("the messages {bodies:?}"), move |sync| {
            seen.extend(texts(&sync["rooms"]["join"][&room]["timeline"]["events"]));
            bodies.iter().all(|body| seen.contains(body)).then(|| seen.clone())
        })
        .await
    }
}

/// The bodies of the text messages among some events.
pub fn texts(events: &Value) -> Vec<String> {
    let events = events.as_array().map(Vec::as_slice).unwrap_or_default();
    events
        .iter()
        .filter(|event| event["type"] == "m.room.message")
        .filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned()))
        .collect()
}
