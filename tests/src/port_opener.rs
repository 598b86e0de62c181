//! What makes a router of the lab open ports for hosts that ask (UPnP): Debian's miniupnpd, as it runs on routers that people
//! have. `tests/setup.sh` unpacks it.

use std::{fs, io, path::PathBuf, process::Stdio};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

use crate::{
    machine::{LanError, Machine, tool},
    within,
};

/// Where it puts what it opens.
const CHAINS: &str = "table inet filter {
    chain miniupnpd { }
    chain prerouting_miniupnpd { }
    chain postrouting_miniupnpd { }
    chain prerouting {
        type nat hook prerouting priority -100
        jump prerouting_miniupnpd
    }
}
";

const SETTINGS: &str = "ext_ifname=wan
listening_ip=lan
http_port=5000
enable_upnp=yes
enable_natpmp=no
secure_mode=yes
uuid=6b697468-0000-4000-8000-000000000000
allow 1024-65535 0.0.0.0/0 1024-65535
";

/// The running program. It ends when it is dropped.
pub(crate) struct PortOpener {
    _process: Child,
    _folder: TempDir,
}

impl PortOpener {
    pub(crate) async fn start(router: &Machine) -> Result<Self, LanError> {
        let missing = |error| LanError::Tool("miniupnpd", error);
        let program = program().ok_or_else(|| missing(io::ErrorKind::NotFound.into()))?;
        router.nft(CHAINS).await?;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let settings = folder.path().join("miniupnpd.conf");
        fs::write(&settings, SETTINGS).expect("a writable folder");
        let line = router.inside();
        let mut process = tool(&line[0])
            .args(&line[1..])
            .arg(program)
            // In the foreground, with its words on standard error.
            .arg("-d")
            .arg("-f")
            .arg(settings)
            .arg("-P")
            .arg(folder.path().join("pid"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(missing)?;
        let mut words = BufReader::new(process.stderr.take().expect("stderr is piped")).lines();
        let mut said = String::new();
        let listening = async {
            while let Ok(Some(line)) = words.next_line().await {
                if line.contains("HTTP listening on port") {
                    return true;
                }
                said += &line;
            }
            false
        };
        if !within("miniupnpd", listening).await {
            return Err(LanError::Refused("miniupnpd".to_owned(), said));
        }
        // It would wait for ever for somebody to read what it says.
        tokio::spawn(async move { while let Ok(Some(_)) = words.next_line().await {} });
        Ok(Self {
            _process: process,
            _folder: folder,
        })
    }
}

fn program() -> Option<PathBuf> {
    let here = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.miniupnpd/usr/sbin/miniupnpd"));
    let installed = PathBuf::from("/usr/sbin/miniupnpd");
    [here, installed].into_iter().find(|path| path.exists())
}
