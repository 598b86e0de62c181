//! A machine of a network in a test: a network namespace of the kernel, in a user namespace that its machines share, so that
//! root is not needed. It goes when it is dropped. Runs no node itself.

use std::{io, process::Stdio};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

/// Why there is no such network here.
#[derive(Debug, thiserror::Error)]
pub enum LanError {
    /// A tool is missing.
    #[error("{0} cannot be run")]
    Tool(&'static str, #[source] io::Error),
    /// The system does not permit it.
    #[error("{0} failed: {1}")]
    Refused(String, String),
}

/// A process that does nothing but stand in a network namespace and thereby keep it.
pub(crate) struct Machine {
    process: Child,
    pid: String,
    /// Whether its network belongs to a user namespace that has to be entered first.
    user: bool,
}

impl Machine {
    /// The first machine of a network.
    pub(crate) async fn first() -> Result<Self, LanError> {
        match Self::start(&["unshare", "--user", "--map-root-user", "--net"], true).await {
            Ok(machine) => Ok(machine),
            // Root may be allowed what users are not.
            Err(_) => Self::start(&["unshare", "--net"], false).await,
        }
    }

    /// Another machine of the same network.
    pub(crate) async fn another(&self) -> Result<Self, LanError> {
        let inside = self.enter(&["--user", "--preserve-credentials"][..if self.user { 2 } else { 0 }]);
        let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
        Self::start(&[&inside[..], &["unshare", "--net"]].concat(), self.user).await
    }

    async fn start(command: &[&str], user: bool) -> Result<Self, LanError> {
        let mut process = tool(command[0])
            .args(&command[1..])
            .arg("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| LanError::Tool("unshare", error))?;
        let pid = process.id().map(|pid| pid.to_string()).unwrap_or_default();
        // The echo comes from inside the new namespace, or not at all.
        let mut echo = [0; 1];
        let echoed = async {
            process.stdin.as_mut()?.write_all(b"!").await.ok()?;
            process.stdout.as_mut()?.read_exact(&mut echo).await.ok()
        };
        if echoed.await.is_some() {
            let machine = Self { process, pid, user };
            machine.ip("link set lo up").await?;
            return Ok(machine);
        }
        let output = process.wait_with_output().await;
        let reason = output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        Err(LanError::Refused(command.join(" "), reason.unwrap_or_default()))
    }

    /// What names its network namespace to tools.
    pub(crate) fn pid(&self) -> &str {
        &self.pid
    }

    /// Lays a cable to another machine: an interface here and one there.
    pub(crate) async fn cable(&self, here: &str, other: &Self, there: &str) -> Result<(), LanError> {
        self.ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            other.pid
        ))
        .await?;
        self.ip(&format!("link set {here} up")).await?;
        other.ip(&format!("link set {there} up")).await
    }

    /// A command line that runs the rest of it in some of this process's namespaces.
    fn enter(&self, namespaces: &[&str]) -> Vec<String> {
        if namespaces.is_empty() {
            return vec!["env".to_owned()];
        }
        let words = ["nsenter", "--target", &self.pid];
        words.iter().chain(namespaces).map(|word| (*word).to_owned()).collect()
    }

    /// What to put before a command line to run it on this machine.
    pub(crate) fn inside(&self) -> Vec<String> {
        let namespaces = ["--net", "--user", "--preserve-credentials"];
        self.enter(&namespaces[..if self.user { 3 } else { 1 }])
    }

    /// Runs `ip` here.
    pub(crate) async fn ip(&self, arguments: &str) -> Result<(), LanError> {
        let words: Vec<_> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        self.run(&words, "").await
    }

    /// Gives `nft` these rules here.
    pub(crate) async fn nft(&self, rules: &str) -> Result<(), LanError> {
        self.run(&["nft", "-f", "-"], rules).await
    }

    /// Lets this machine pass packets on.
    pub(crate) async fn forward(&self) -> Result<(), LanError> {
        self.run(&["tee", "/proc/sys/net/ipv4/ip_forward"], "1").await
    }

    async fn run(&self, command: &[&str], input: &str) -> Result<(), LanError> {
        let line = self.inside();
        let failed = |error| LanError::Tool("nsenter", error);
        let mut child = tool(&line[0])
            .args(&line[1..])
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A tool that does not read says so itself.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.map_err(failed)?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LanError::Refused(command.join(" "), reason))
    }
}

/// A system tool: `ip` stands where users who are not root do not look.
pub(crate) fn tool(name: &str) -> Command {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(name);
    command
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .kill_on_drop(true);
    command
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Killed on drop; this only says so early.
        let _ = self.process.start_kill();
    }
}
