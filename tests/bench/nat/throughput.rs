//! How fast a file goes from node to node, straight and through a relay, on lines that neither delay nor lose: the programs are
//! what is measured. All of them share this machine's processors.

use std::time::Instant;

use kith_tests::{Access, LanError};

use super::{Lab, is_straight, until_path};
use crate::Table;

const MIB: usize = 1 << 20;
const FILE: usize = 32 * MIB;

pub(super) async fn measure(reach: &mut Table) -> Result<(), LanError> {
    for (what, access) in [
        ("file of 32 MiB between two public hosts, straight", Access::Public),
        ("file of 32 MiB between two home routers, straight", Access::Home),
        (
            "file of 32 MiB between two carriers' networks, through a relay",
            Access::Carrier,
        ),
    ] {
        let mut lab = Lab::set_up(1, None).await?;
        let (first, second) = (lab.host(access).await?, lab.host(access).await?);
        let nodes = [lab.node(&first).await, lab.node(&second).await];
        let mut alice = nodes[0].client_over_socket("alice").await;
        let mut bob = nodes[1].client_over_socket("bob").await;
        nodes[0].know(&nodes[1]).await;
        alice.talk_to(&mut bob).await;
        if access.permits_straight(access) {
            let straight = until_path(&nodes[1], &nodes[0], is_straight).await;
            assert!(straight.is_some(), "no straight path");
        }
        let media = alice.upload(vec![b'k'; FILE]).await;
        let start = Instant::now();
        assert_eq!(bob.download(&media).await.len(), FILE);
        let rate = FILE as f64 / MIB as f64 / start.elapsed().as_secs_f64();
        reach.row([what, &format!("{rate:.1} MiB/s"), ""]);
    }
    Ok(())
}
