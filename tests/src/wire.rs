//! A cable that is long and bad: a program between two TAP devices (`kith-wire`), because not every kernel can delay or lose
//! packets itself. Looks into no packet.

use std::{process::Stdio, time::Duration};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
};

use crate::{
    binary,
    machine::{LanError, Machine, tool},
    within,
};

/// What a wire does to what it carries, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// How long each frame takes at the least.
    pub delay: Duration,
    /// How much longer it may take. Frames do not overtake each other.
    pub jitter: Duration,
    /// Which part of the packets is lost: between 0 and 1, in hundredths.
    pub loss: f64,
}

/// What a wire has carried, both ways together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Carried {
    /// Frames that arrive.
    pub frames: u64,
    /// Packets that were lost on purpose.
    pub lost: u64,
    /// Frames that were too many at once.
    pub refused: u64,
}

/// A wire. It goes when it is dropped.
pub(crate) struct Wire {
    // Ends the program, by ending its input.
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    _process: Child,
}

impl Wire {
    /// Lays a wire from one machine to another: an interface here and one there. The same seed loses the same frames of the same traffic.
    pub(crate) async fn lay(
        (here, interface): (&Machine, &str),
        (there, name): (&Machine, &str),
        quality: &Quality,
        seed: u64,
    ) -> Result<Self, LanError> {
        let far_end = format!("{interface}far");
        let (program, line) = (binary("kith-wire"), here.inside());
        let quality = serde_json::to_string(quality).expect("JSON");
        let mut process = tool(&line[0])
            .args(&line[1..])
            .arg(program)
            .args([interface, &far_end, &seed.to_string(), &quality])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| LanError::Tool("nsenter", error))?;
        let stdin = process.stdin.take().expect("stdin is piped");
        let mut stdout = BufReader::new(process.stdout.take().expect("stdout is piped"));
        let mut ready = String::new();
        within("the wire", stdout.read_line(&mut ready)).await.expect("text");
        if ready.is_empty() {
            let mut reason = String::new();
            let mut errors = process.stderr.take().expect("stderr is piped");
            within("the reason", errors.read_to_string(&mut reason))
                .await
                .expect("text");
            return Err(LanError::Refused("kith-wire".to_owned(), reason.trim().to_owned()));
        }
        // The device is the program's wherever it is.
        here.ip(&format!("link set {far_end} netns {} name {name}", there.pid()))
            .await?;
        here.ip(&format!("link set {interface} up")).await?;
        there.ip(&format!("link set {name} up")).await?;
        Ok(Self {
            stdin,
            stdout,
            _process: process,
        })
    }

    /// What it has carried so far.
    pub(crate) async fn carried(&mut self) -> Carried {
        self.stdin.write_all(b"\n").await.expect("the wire is there");
        let mut line = String::new();
        within("the wire's counts", self.stdout.read_line(&mut line))
            .await
            .expect("text");
        parse(&line)
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> T {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("no counts ({error}): {line:?}"))
}
