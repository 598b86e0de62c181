//! A local network of two machines: two network namespaces of the kernel, joined by a cable (a veth pair), in a user
//! namespace of their own, so that root is not needed. Everything goes when it is dropped.

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

/// The network. Its machines end when it is dropped.
pub struct Lan {
    machines: [Machine; 2],
}

/// A process that does nothing but stand in a network namespace and thereby keep it.
struct Machine {
    process: Child,
    pid: String,
    /// Whether its network belongs to a user namespace that has to be entered first.
    user: bool,
}

impl Lan {
    /// Makes the network: 10.66.0.1 and 10.66.0.2.
    pub async fn set_up() -> Result<Self, LanError> {
        let first = match Machine::start(&["unshare", "--user", "--map-root-user", "--net"], true).await {
            Ok(machine) => machine,
            // Root may be allowed what users are not.
            Err(_) => Machine::start(&["unshare", "--net"], false).await?,
        };
        let inside = first.enter(&["--user", "--preserve-credentials"][..if first.user { 2 } else { 0 }]);
        let inside: Vec<&str> = inside.iter().map(String::as_str).collect();
        let second = Machine::start(&[&inside[..], &["unshare", "--net"]].concat(), first.user).await?;
        first
            .ip(&format!("link add lan type veth peer name lan netns {}", second.pid))
            .await?;
        for (machine, address) in [(&first, "10.66.0.1/24"), (&second, "10.66.0.2/24")] {
            machine.ip(&format!("address add {address} dev lan")).await?;
            for link in ["lo", "lan"] {
                machine.ip(&format!("link set {link} up")).await?;
            }
        }
        Ok(Self {
            machines: [first, second],
        })
    }

    /// What to put before a command line to run it on a machine, 0 or 1.
    pub fn on(&self, machine: usize) -> Vec<String> {
        self.machines[machine].inside()
    }
}

impl Machine {
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
            return Ok(Self { process, pid, user });
        }
        let output = process.wait_with_output().await;
        let reason = output.map(|output| String::from_utf8_lossy(&output.stderr).trim().to_owned());
        Err(LanError::Refused(command.join(" "), reason.unwrap_or_default()))
    }

    /// A command line that runs the rest of it in some of this process's namespaces.
    fn enter(&self, namespaces: &[&str]) -> Vec<String> {
        if namespaces.is_empty() {
            return vec!["env".to_owned()];
        }
        let words = ["nsenter", "--target", &self.pid];
        words.iter().chain(namespaces).map(|word| (*word).to_owned()).collect()
    }

    fn inside(&self) -> Vec<String> {
        let namespaces = ["--net", "--user", "--preserve-credentials"];
        self.enter(&namespaces[..if self.user { 3 } else { 1 }])
    }

    async fn ip(&self, arguments: &str) -> Result<(), LanError> {
        let mut line = self.inside();
        line.push("ip".to_owned());
        let output = tool(&line[0])
            .args(&line[1..])
            .args(arguments.split(' '))
            .output()
            .await
            .map_err(|error| LanError::Tool("nsenter", error))?;
        if output.status.success() {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(LanError::Refused(format!("ip {arguments}"), reason))
    }
}

/// A system tool: `ip` stands where users who are not root do not look.
fn tool(name: &str) -> Command {
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
