//! A local network of two machines, joined by a cable. Everything goes when it is dropped.

use crate::machine::{LanError, Machine};

/// The network. Its machines end when it is dropped.
pub struct Lan {
    machines: [Machine; 2],
}

impl Lan {
    /// Makes the network: 10.66.0.1 and 10.66.0.2.
    pub async fn set_up() -> Result<Self, LanError> {
        let first = Machine::first().await?;
        let second = first.another().await?;
        first.cable("lan", &second, "lan").await?;
        for (machine, address) in [(&first, "10.66.0.1/24"), (&second, "10.66.0.2/24")] {
            machine.ip(&format!("address add {address} dev lan")).await?;
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
