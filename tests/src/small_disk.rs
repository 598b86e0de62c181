//! A file system of a few MiB that exists for one test: a tmpfs in a mount namespace of its own, which a process holds.
//! It needs no privileges where user namespaces are allowed.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, Command},
};

use crate::{NodeOptions, within};

/// What is written at a time while filling: first large, then to the last page.
const PIECES: [usize; 3] = [1 << 20, 1 << 12, 1];

/// The file system. Dropping it ends it, with all that is on it.
pub struct SmallDisk {
    holder: Child,
    mount_point: TempDir,
    /// The file system as seen from outside, through its holder.
    outside: PathBuf,
}

impl SmallDisk {
    /// Mounts a file system of so many MiB. `Err` says why this machine does not permit it.
    pub async fn mount(mib: u32) -> Result<Self, String> {
        let mount_point = tempfile::tempdir().expect("a temporary folder");
        let script = format!("mount -t tmpfs -o size={mib}m tmpfs \"$1\" && echo mounted && exec cat");
        let mut holder = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"])
            .arg(mount_point.path())
            // It ends with its input: with this process at the latest.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        let mut said = String::new();
        let mut output = BufReader::new(holder.stdout.take().expect("stdout is piped"));
        within("the mount", output.read_line(&mut said)).await.expect("text");
        if said.trim() != "mounted" {
            let mut complaint = String::new();
            let mut errors = holder.stderr.take().expect("stderr is piped");
            within("the reason", errors.read_to_string(&mut complaint))
                .await
                .expect("text");
            return Err(complaint.trim().to_owned());
        }
        let pid = holder.id().expect("it runs");
        let inside = mount_point.path().strip_prefix("/").expect("an absolute path");
        let outside = Path::new("/proc").join(pid.to_string()).join("root").join(inside);
        Ok(Self {
            holder,
            mount_point,
            outside,
        })
    }

    /// A node with its data folder there.
    pub fn node_options(&self) -> NodeOptions {
        let holder = self.holder.id().expect("it runs until it is dropped").to_string();
        let enter = [
            "nsenter",
            "--target",
            &holder,
            "--user",
            "--mount",
            "--preserve-credentials",
        ];
        NodeOptions {
            data: Some(self.mount_point.path().join("data")),
            through: enter.map(str::to_owned).to_vec(),
            ..NodeOptions::default()
        }
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = File::create_new(self.ballast()).expect("the ballast");
        for piece in PIECES {
            let bytes = vec![0; piece];
            let full = loop {
                if let Err(error) = ballast.write_all(&bytes) {
                    break error;
                }
            };
            assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).expect("the ballast goes");
    }

    fn ballast(&self) -> PathBuf {
        self.outside.join("ballast")
    }
}
