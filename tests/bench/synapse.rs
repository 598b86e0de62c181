//! Synapse on SQLite with its rate limits lifted, as the yardstick for the client API.

use std::{fs, path::PathBuf, process::Stdio};

use tempfile::TempDir;
use tokio::process::{Child, Command};

/// A running Synapse. Dropping it kills the process.
pub(crate) struct Synapse {
    python: PathBuf,
    folder: TempDir,
    child: Child,
    /// Its base URL.
    pub(crate) url: String,
}

impl Synapse {
    /// Starts one, if a Python that has it is named in the environment.
    pub(crate) async fn start() -> Option<Self> {
        let python = PathBuf::from(std::env::var_os("KITH_BENCH_SYNAPSE")?);
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let url = format!("http://127.0.0.1:{port}");
        let generated = Command::new(&python)
            .args([
                "-m",
                "synapse.app.homeserver",
                "--server-name",
                "localhost",
                "--generate-config",
            ])
            .args(["--report-stats", "no", "--config-path", "homeserver.yaml"])
            .current_dir(folder.path())
            .output()
            .await
            .expect("python runs");
        assert!(
            generated.status.success(),
            "{}",
            String::from_utf8_lossy(&generated.stderr)
        );
        let config = folder.path().join("homeserver.yaml");
        let yaml = fs::read_to_string(&config).expect("the generated configuration");
        let yaml = yaml.replace("port: 8008", &format!("port: {port}")) + UNLIMITED;
        fs::write(&config, yaml).expect("a writable folder");
        let child = Command::new(&python)
            .args(["-m", "synapse.app.homeserver", "--config-path", "homeserver.yaml"])
            .current_dir(folder.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("python runs");
        let synapse = Self {
            python,
            folder,
            child,
            url,
        };
        synapse.await_ready().await;
        Some(synapse)
    }

    async fn await_ready(&self) {
        let http = reqwest::Client::new();
        let ready = async {
            let versions = format!("{}/_matrix/client/versions", self.url);
            while http.get(&versions).send().await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        kith_tests::within("Synapse", ready).await;
    }

    /// Adds a user with a password.
    pub(crate) async fn add_user(&self, name: &str, password: &str) {
        let program = self.python.with_file_name("register_new_matrix_user");
        let output = Command::new(program)
            .args([
                "-u",
                name,
                "-p",
                password,
                "--no-admin",
                "-c",
                "homeserver.yaml",
                &self.url,
            ])
            .current_dir(self.folder.path())
            .output()
            .await
            .expect("the registration program runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("Synapse runs")
    }
}

const UNLIMITED: &str = "
rc_message: {per_second: 1000000, burst_count: 1000000}
rc_joins: {local: {per_second: 1000000, burst_count: 1000000}}
rc_login: {address: {per_second: 1000000, burst_count: 1000000}, account: {per_second: 1000000, burst_count: 1000000}}
rc_room_creation: {per_second: 1000000, burst_count: 1000000}
suppress_key_server_warning: true
";

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}
