//! The program as a volunteer runs it.

#[cfg(test)]
mod program {
    use std::{
        io::{BufRead, BufReader, Read},
        path::Path,
        process::{Child, ChildStdout, Command, Output, Stdio},
    };

    use serde_json::Value;

    const LISTEN: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

    fn relay(data: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kith-relay"));
        command.arg("run").arg("--data").arg(data).args(options);
        command
    }

    struct Running {
        child: Child,
        stdout: BufReader<ChildStdout>,
        ready: Value,
    }

    impl Running {
        fn start(data: &Path, options: &[&str]) -> Self {
            let mut child = relay(data, options)
                .arg("--json")
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            stdout.read_line(&mut line).unwrap();
            let ready = serde_json::from_str(&line).unwrap();
            Self { child, stdout, ready }
        }

        /// Stops it as a service manager does; gives what it printed after the ready line.
        #[expect(unsafe_code)]
        fn stop(mut self) -> String {
            let pid = i32::try_from(self.child.id()).unwrap();
            // SAFETY: the process is our own child, and not yet waited for.
            assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
            assert!(self.child.wait().unwrap().success());
            let mut rest = String::new();
            self.stdout.read_to_string(&mut rest).unwrap();
            rest
        }
    }

    #[test]
    fn it_says_once_that_it_is_ready_stops_when_told_and_keeps_its_address() {
        let folder = tempfile::tempdir().unwrap();
        let first = Running::start(folder.path(), &["--listen", LISTEN, "--listen", "/ip4/127.0.0.1/tcp/0"]);
        let peer_id = first.ready["peer_id"].as_str().unwrap().to_owned();
        assert_eq!(first.ready["event"], "ready");
        assert_eq!(first.ready["listen"].as_array().unwrap().len(), 2);
        let addresses = first.ready["addr"].as_array().unwrap();
        assert_eq!(addresses.len(), 2);
        assert!(
            addresses
                .iter()
                .all(|address| address.as_str().unwrap().ends_with(&peer_id))
        );
        assert_eq!(first.stop(), "");

        let external = "/dns4/relay.example.org/udp/4433/quic-v1";
        let second = Running::start(folder.path(), &["--listen", LISTEN, "--external", external]);
        assert_eq!(second.ready["peer_id"], peer_id.as_str());
        assert_eq!(second.ready["addr"][0], format!("{external}/p2p/{peer_id}"));
        second.stop();
    }

    #[test]
    fn a_file_says_where_to_listen_and_the_command_line_wins() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        let config = ["--config", file.to_str().unwrap()];
        std::fs::write(
            &file,
            format!("listen = [\"{LISTEN}\"]\nexternal = [\"/dns4/a.example/tcp/443\"]\n"),
        )
        .unwrap();
        let by_file = Running::start(folder.path(), &config);
        assert_eq!(by_file.ready["listen"].as_array().unwrap().len(), 1);
        assert!(
            by_file.ready["addr"][0]
                .as_str()
                .unwrap()
                .starts_with("/dns4/a.example/tcp/443/p2p/")
        );
        by_file.stop();
        let external = ["--external", "/dns4/b.example/tcp/443"];
        let by_both = Running::start(folder.path(), &[&config[..], &external].concat());
        assert!(
            by_both.ready["addr"][0]
                .as_str()
                .unwrap()
                .starts_with("/dns4/b.example/tcp/443/p2p/")
        );
        by_both.stop();
    }

    #[test]
    fn a_mistake_in_the_file_is_told_with_key_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("relay.toml");
        let cases = [
            ("[limits]\ncircuit = 1\n", "line 2, key `circuit`: unknown field"),
            ("\n[limits]\ncircuits = -1\n", "line 3, key `circuits`"),
            ("[limits]\nper_ip_minute = 0\n", "line 2, key `per_ip_minute`"),
            ("listen = [\"here\"]\n", "line 1, key `listen`"),
            ("[limit]\n", "line 1: unknown field"),
        ];
        for (text, expected) in cases {
            std::fs::write(&file, text).unwrap();
            let output = relay(folder.path(), &["--config", file.to_str().unwrap()])
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{stderr}");
            assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{stderr}");
        }
        let missing = relay(folder.path(), &["--config", "/nowhere/relay.toml"])
            .output()
            .unwrap();
        assert_eq!(missing.status.code(), Some(1));
    }

    #[test]
    fn what_cannot_be_is_told_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let taken = format!("/ip4/127.0.0.1/udp/{}/quic-v1", holder.local_addr().unwrap().port());
        let other_machine = "/ip4/192.0.2.1/udp/4433/quic-v1";
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let good = folder.path().join("good");
        let cases: [(&Path, &[&str]); 4] = [
            (&good, &["--listen", &taken]),
            (&good, &["--listen", other_machine]),
            (&file, &["--listen", LISTEN]),
            (&good, &["--listen", "/ip4/127.0.0.1/udp/1/ws"]),
        ];
        for (data, options) in cases {
            let Output { status, stdout, stderr } = relay(data, options).arg("--json").output().unwrap();
            let stderr = String::from_utf8(stderr).unwrap();
            assert_eq!(status.code(), Some(1), "{stderr}");
            assert!(stdout.is_empty());
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
        }
    }
}
