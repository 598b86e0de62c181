//! The page, and what stands between it and the rest of the web.

use std::net::TcpStream;

use serde_json::Value;

use crate::{Answer, Running, get, http, kith};

fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    http(TcpStream::connect(address).unwrap(), method, path, headers)
}

#[test]
fn the_page_and_its_files_are_served_and_nothing_foreign_may_run() {
    let data = tempfile::tempdir().unwrap();
    let node = Running::start(data.path(), &[]);
    let page = get(node.http(), "/");
    assert!(page.body.contains("<title>Kith</title>"));
    for link in page.body.split(['"', '\'']).filter(|part| part.starts_with("/_kith/")) {
        assert_eq!(get(node.http(), link).status, 200, "{link}");
    }
    for header in [
        "content-security-policy: default-src 'none'",
        "x-frame-options: deny",
        "nosniff",
    ] {
        assert!(page.head.contains(header), "{header} in {}", page.head);
    }
    for from_elsewhere in ["src=\"http", "href=\"http", "src=\"//", "href=\"//"] {
        assert!(!page.body.contains(from_elsewhere), "{from_elsewhere}");
    }
}

#[test]
fn the_news_hold_what_the_page_shows() {
    let data = tempfile::tempdir().unwrap();
    let alice = kith(
        data.path(),
        &["user", "add", "alice", "--password-stdin"],
        "correct horse",
    )
    .ok();
    let node = Running::start(data.path(), &[]);
    let news = get(node.http(), "/_kith/page/news").json();
    assert_eq!(news["server_name"], node.ready["server_name"]);
    assert_eq!(news["ticket"], node.ready["ticket"]);
    assert_eq!(news["http"], node.ready["http"]);
    assert_eq!(news["users"][0], alice.as_str());
    let page = get(node.http(), "/").body;
    let inside = page
        .split_once("id=\"news\">")
        .unwrap()
        .1
        .split_once("</script>")
        .unwrap()
        .0;
    assert_eq!(
        serde_json::from_str::<Value>(inside).unwrap(),
        news,
        "the page begins with the news inside"
    );
    assert!(news["qr"].as_str().unwrap().contains("<svg"));
    assert!(news["peers"].is_array() && news["rooms"].is_array());
}

#[test]
fn other_origins_and_other_names_get_nothing() {
    let data = tempfile::tempdir().unwrap();
    let node = Running::start(data.path(), &[]);
    let own = node.http();
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)], u16);
    let cases: [Case<'_>; 13] = [
        ("GET", "/_kith/page/news", &[("Host", own)], 200),
        (
            "GET",
            "/_kith/page/news",
            &[("Host", own), ("Sec-Fetch-Site", "same-origin")],
            200,
        ),
        (
            "GET",
            "/_kith/page/news",
            &[("Host", own), ("Sec-Fetch-Site", "cross-site")],
            403,
        ),
        (
            "GET",
            "/_kith/page/news",
            &[("Host", own), ("Origin", "https://evil.example")],
            403,
        ),
        (
            "OPTIONS",
            "/_kith/page/news",
            &[("Host", own), ("Origin", "https://evil.example")],
            403,
        ),
        ("POST", "/_kith/page/news", &[("Host", own)], 405),
        ("GET", "/_kith/page/news", &[("Host", "evil.example")], 403),
        ("GET", "/", &[("Host", "evil.example")], 403),
        ("GET", "/_matrix/client/versions", &[("Host", "evil.example")], 403),
        (
            "GET",
            "/_matrix/client/v3/account/whoami",
            &[("Host", own), ("Origin", "https://app.example")],
            401,
        ),
        // The control protocol is not on the HTTP address at all.
        ("GET", "/_kith/control/1/status", &[("Host", own)], 404),
        ("POST", "/_kith/control/1/users", &[("Host", own)], 404),
        ("POST", "/_kith/control/1/backup", &[("Host", own)], 404),
    ];
    for (method, path, headers, status) in cases {
        let answer = ask(own, method, path, headers);
        assert_eq!(answer.status, status, "{method} {path} {headers:?}: {}", answer.body);
        let readable = answer.head.contains("access-control-allow-origin");
        assert_eq!(
            readable,
            status != 403 && path.starts_with("/_matrix") || status == 404,
            "{method} {path}"
        );
    }
    let forbidden = ask(own, "GET", "/_matrix/client/versions", &[("Host", "evil.example")]);
    assert_eq!(forbidden.json()["errcode"], "M_FORBIDDEN");
    let unknown = get(own, "/_matrix/client/v3/no_such_thing");
    assert_eq!(
        (unknown.status, &unknown.json()["errcode"]),
        (404, &"M_UNRECOGNIZED".into())
    );
}
