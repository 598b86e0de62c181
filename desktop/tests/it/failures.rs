//! What goes wrong says so in one line, exits with 1 (2 for arguments that make no sense), and changes nothing.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use crate::{QUIET, RELAY, Running, kith, run};

/// Every file of a folder with its size and a hash of its bytes; sockets, locks and the database's log aside, which come
/// and go with whoever looks.
fn snapshot(folder: &Path) -> Vec<(PathBuf, usize, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let (kind, name) = (entry.file_type().unwrap(), entry.file_name().into_string().unwrap());
        if kind.is_dir() {
            files.extend(snapshot(&entry.path()));
        } else if kind.is_file() && name != "kith.lock" && !name.starts_with("kith.db-") {
            let bytes = fs::read(entry.path()).unwrap();
            let mut hasher = DefaultHasher::new();
            bytes.hash(&mut hasher);
            files.push((entry.path(), bytes.len(), hasher.finish()));
        }
    }
    files.sort();
    files
}

/// `kith run` on a folder; it must fail.
fn refused(data: &Path, further: &[&str]) -> String {
    run(&[&["run"], &QUIET[..], &[data.to_str().unwrap()], further].concat(), "").failed(1)
}

/// A folder with a node that is not running.
fn made() -> tempfile::TempDir {
    let data = tempfile::tempdir().unwrap();
    kith(
        data.path(),
        &["user", "add", "alice", "--password-stdin"],
        "correct horse",
    )
    .ok();
    data
}

#[test]
fn bad_input_is_named_and_changes_nothing() {
    let data = made();
    let phrase = kith(data.path(), &["phrase", "show"], "").ok();
    let (unknown, swapped) = (
        format!("zzz {}", &phrase[phrase.find(' ').unwrap() + 1..]),
        "zoo ".repeat(24),
    );
    let other = format!("{}art", "abandon ".repeat(23));
    let ticket = kith(data.path(), &["ticket"], "").ok();
    let existing = data.path().join("kith.db");
    let existing = existing.to_str().unwrap();
    let before = snapshot(data.path());
    let cases: [(&[&str], &str, i32, &str); 25] = [
        (
            &["user", "add", "alice", "--password-stdin"],
            "correct horse",
            1,
            "taken",
        ),
        (
            &["user", "add", "Not A Name", "--password-stdin"],
            "correct horse",
            1,
            "name",
        ),
        (
            &["user", "add", "bob", "--password-stdin"],
            "",
            1,
            "the password is empty",
        ),
        (
            &["user", "add", "bob", "--password-stdin"],
            "\nsecond line",
            1,
            "the password is empty",
        ),
        (&["user", "add", "bob"], "correct horse", 1, "--password-stdin"),
        (&["user", "add"], "", 2, "<NAME>"),
        (&["peer", "add", "garbage"], "", 1, "a ticket begins with `kith:`"),
        (&["peer", "add", "kith:AAAA"], "", 1, "damaged"),
        (&["peer", "add", &ticket[..ticket.len() - 2]], "", 1, "damaged"),
        (&["peer", "add", &ticket], "", 1, "own"),
        (
            &["peer", "add", "matrix:u/alice:matrix.org"],
            "",
            1,
            "names no Kith node",
        ),
        (&["peer", "add"], "", 2, "<TICKET>"),
        (&["phrase", "restore"], "", 1, "24 words, not 0"),
        (&["phrase", "restore"], "one two three", 1, "24 words, not 3"),
        (&["phrase", "restore"], &unknown, 1, "word 1 is not in the word list"),
        (&["phrase", "restore"], &swapped, 1, "do not belong together"),
        (&["phrase", "restore"], &other, 1, "already belongs to"),
        (&["backup", existing], "", 1, "exists"),
        (&["backup", "/dev/null/copy"], "", 1, "cannot write"),
        (
            &["check", "/nowhere/copy.db"],
            "",
            1,
            "there is no database at /nowhere/copy.db",
        ),
        (&["check", "/dev/null"], "", 1, "there is no database at /dev/null"),
        (&["status", "--nonsense"], "", 2, "--nonsense"),
        (&["nonsense"], "", 2, "nonsense"),
        (&["run", "--http", "nonsense"], "", 2, "--http"),
        (&["run", "--listen", "nonsense"], "", 2, "--listen"),
    ];
    for (arguments, stdin, status, expected) in cases {
        let said = kith(data.path(), arguments, stdin).failed(status);
        assert!(
            said.starts_with("kith: ") && said.contains(expected),
            "{arguments:?}: {said}"
        );
        assert!(!said.contains("zzz"), "an error must not repeat words of a phrase");
    }
    assert_eq!(snapshot(data.path()), before);

    // A running node refuses the same, and goes on.
    let node = Running::start(data.path(), &[]);
    for (arguments, stdin, status, expected) in cases {
        if arguments[0] != "run" && arguments != ["phrase", "restore"] {
            let said = kith(data.path(), arguments, stdin).failed(status);
            assert!(said.contains(expected), "{arguments:?}: {said}");
        }
    }
    let said = kith(data.path(), &["phrase", "restore"], &phrase).failed(1);
    assert!(said.contains("locked"), "{said}");
    assert_eq!(crate::get(node.http(), "/_matrix/client/versions").status, 200);
    assert_eq!(node.end("TERM").0, Some(0));
}

#[test]
fn a_mistake_in_the_configuration_file_is_named_with_key_and_line() {
    let data = made();
    let cases = [
        ("\nrelay = []\n", "line 2, key `relay`: unknown field"),
        ("profile = \"tablet\"", "line 1, key `profile`: unknown variant"),
        ("mdns = false\nlisten = [\"here\"]", "line 2, key `listen`"),
        ("[relays]\n", "line 1"),
    ];
    for (text, expected) in cases {
        fs::write(data.path().join("kith.toml"), text).unwrap();
        for command in ["run", "status"] {
            let said = kith(data.path(), &[command], "").failed(2);
            assert!(said.contains("kith.toml") && said.contains(expected), "{said}");
        }
    }
}

#[test]
fn relays_that_are_none_are_refused_and_the_list_stays() {
    let data = made();
    let relay = format!("/ip4/127.0.0.1/tcp/9/p2p/{RELAY}");
    kith(data.path(), &["relay", "add", &relay], "").ok();
    let before = kith(data.path(), &["relay", "list"], "").ok();
    let circuit = format!("{relay}/p2p-circuit");
    let cases = [
        (&["relay", "add", "/ip4/127.0.0.1/tcp/9"][..], 1, "no relay's address"),
        (&["relay", "add", &circuit], 1, "no relay's address"),
        (&["relay", "add", "here"], 2, "invalid"),
        (&["relay", "remove", "/ip4/127.0.0.1/tcp/9"], 1, "not among the relays"),
    ];
    for (command, status, expected) in cases {
        let said = kith(data.path(), command, "").failed(status);
        assert!(said.contains(expected), "{said}");
    }
    fs::write(data.path().join("kith.toml"), format!("relays = [\"{relay}\"]")).unwrap();
    let said = kith(data.path(), &["relay", "remove", &relay], "").failed(1);
    assert!(said.contains("in the configuration"), "{said}");
    fs::remove_file(data.path().join("kith.toml")).unwrap();
    assert_eq!(kith(data.path(), &["relay", "list"], "").ok(), before);
}

#[test]
fn a_command_that_is_not_whole_names_what_is_missing() {
    for (group, commands) in [("user", "add"), ("peer", "add"), ("phrase", "show, restore")] {
        let said = run(&[group], "").failed(2);
        assert!(said.contains(&format!("[subcommands: {commands}]")), "{said}");
    }
}

#[test]
fn commands_that_make_no_node_need_one() {
    let empty = tempfile::tempdir().unwrap();
    let cases: [&[&str]; 4] = [&["status"], &["backup", "copy.db"], &["check"], &["phrase", "show"]];
    for arguments in cases {
        for folder in [empty.path().to_owned(), empty.path().join("absent")] {
            let said = kith(&folder, arguments, "").failed(1);
            assert!(said.contains("there is no node in"), "{arguments:?}: {said}");
        }
    }
    assert!(snapshot(empty.path()).is_empty());
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for folder in [file.path().to_owned(), file.path().join("below"), "/proc/kith".into()] {
        let said = refused(&folder, &[]);
        assert!(said.contains("cannot use the data folder"), "{said}");
        kith(&folder, &["user", "add", "alice", "--password-stdin"], "correct horse").failed(1);
    }
    assert_eq!(fs::read(file.path()).unwrap(), b"");
}

#[test]
fn a_port_or_socket_in_use_is_named() {
    let (data, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let node = Running::start(data.path(), &[]);
    let occupied = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = occupied.local_addr().unwrap().to_string();
    let said = run(
        &[
            "run",
            "--no-open",
            "--http",
            &http,
            "--data",
            other.path().to_str().unwrap(),
        ],
        "",
    )
    .failed(1);
    assert!(said.contains(&format!("{http} is in use")), "{said}");

    let listen = node.ready["listen"][0].as_str().unwrap();
    let arguments = [
        "run",
        "--no-open",
        "--no-mdns",
        "--no-upnp",
        "--http",
        "127.0.0.1:0",
        "--listen",
        listen,
        "--data",
    ];
    let said = run(&[&arguments[..], &[other.path().to_str().unwrap()]].concat(), "").failed(1);
    assert!(said.contains(listen), "{said}");

    let said = refused(other.path(), &["--socket", node.text("socket")]);
    assert!(said.contains("in use"), "{said}");
    let said = refused(other.path(), &["--socket", "/dev/null/socket"]);
    assert!(said.contains("/dev/null/socket"), "{said}");
    let said = refused(other.path(), &["--peer", "kith:nonsense"]);
    assert!(said.contains("no ticket"), "{said}");
    let said = refused(data.path(), &[]);
    assert!(said.contains("is locked by another node"), "{said}");
    assert_eq!(crate::get(node.http(), "/").status, 200, "the first node goes on");
}

#[test]
fn damaged_files_are_refused_and_left_as_they_are() {
    let spoil: [(&str, &str, &[u8], u32); 7] = [
        (
            "kith.db",
            "damaged",
            b"this is not a database, but long enough to look at",
            0o600,
        ),
        ("keys/identity", "damaged", b"kith-identity 1 AAAA AAAA\n", 0o600),
        ("keys/node", "damaged", b"", 0o600),
        ("keys/transport", "damaged", b"\xff\xfe", 0o600),
        ("keys/document.json", "damaged", b"{}", 0o600),
        ("keys/identity", "chmod 600", b"kith-identity 1 AAAA AAAA\n", 0o644),
        ("keys/node", "chmod 600", b"", 0o640),
    ];
    for (name, expected, bytes, mode) in spoil {
        let data = made();
        kith(data.path(), &["ticket"], "").ok();
        let file = data.path().join(name);
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let before = snapshot(data.path());
        let said = refused(data.path(), &[]);
        assert!(said.contains(expected) && said.contains(name), "{name}: {said}");
        assert_eq!(snapshot(data.path()), before, "{name}");
    }
}

#[test]
fn keys_and_database_of_different_identities_are_not_mixed() {
    let (data, other) = (made(), made());
    fs::remove_dir_all(data.path().join("keys")).unwrap();
    fs::rename(other.path().join("keys"), data.path().join("keys")).unwrap();
    let said = refused(data.path(), &[]);
    assert!(said.contains("the database belongs to"), "{said}");

    let data = made();
    fs::remove_file(data.path().join("keys/identity")).unwrap();
    let said = refused(data.path(), &[]);
    assert!(said.contains("kith phrase restore"), "{said}");
}

#[test]
fn check_finds_damage_inside_a_database() {
    let data = made();
    let file = data.path().join("kith.db");
    let mut bytes = fs::read(&file).unwrap();
    // The middle of the file holds tables' pages; the head stays, so that it still looks like a database.
    let middle = bytes.len() / 2;
    bytes[middle - 4096..middle + 4096].fill(0x5a);
    fs::write(&file, &bytes).unwrap();
    let said = kith(data.path(), &["check"], "").failed(1);
    assert!(said.contains("damaged"), "{said}");
    assert_eq!(fs::read(&file).unwrap(), bytes);
}
