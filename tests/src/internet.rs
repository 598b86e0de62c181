//! An internet in a test: hosts on it, and hosts behind routers of the kinds that people have. Real kernels route and translate;
//! distances and losses are added by wires, where wanted.

use crate::{
    machine::{LanError, Machine},
    port_opener::PortOpener,
    wire::{Carried, Quality, Wire},
};

/// The network that everything public is in. Its addresses count as public, which those for documentation do not; nothing leaves
/// the lab.
const NETWORK: &str = "11.0.113";

/// What stands between a host and the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing: it has an address of its own.
    Public,
    /// A home router: one port outside for each inside, whoever is spoken to; strangers are not let in.
    Home,
    /// A carrier's translator: another port for everyone who is spoken to (symmetric).
    Carrier,
    /// A company's firewall: symmetric, no UDP, and TCP to web ports only.
    Corporate,
    /// A home router that lets no UDP pass.
    HomeWithoutUdp,
}

impl Access {
    /// The kinds that people commonly have.
    pub const ALL: [Self; 4] = [Self::Public, Self::Home, Self::Carrier, Self::Corporate];

    /// Whether two hosts behind such can have a straight path, once both try: not when a side that speaks from other ports to
    /// everyone meets a side that lets in only whom it spoke to.
    pub fn permits_straight(self, other: Self) -> bool {
        use Access::{Carrier, Corporate, Home, HomeWithoutUdp, Public};
        match (self, other) {
            (Corporate, _) | (_, Corporate) => false,
            (Public, _) | (_, Public) | (Home, Home) | (HomeWithoutUdp, HomeWithoutUdp) => true,
            (Home | Carrier | HomeWithoutUdp, Carrier)
            | (Carrier | HomeWithoutUdp, Home)
            | (Carrier | Home, HomeWithoutUdp) => false,
        }
    }

    fn rules(self) -> String {
        let translate = match self {
            Self::Public | Self::Home | Self::HomeWithoutUdp => "masquerade",
            Self::Carrier | Self::Corporate => "masquerade fully-random",
        };
        let pass = match self {
            Self::Corporate => "iifname lan meta l4proto udp drop\n iifname lan tcp dport != { 80, 443 } drop",
            Self::HomeWithoutUdp => "iifname lan meta l4proto udp drop",
            Self::Public | Self::Home | Self::Carrier => "",
        };
        // Who knocks unasked is dropped without an answer, as routers do. An answer, or a remembered knock, would spoil a hole.
        format!(
            "table ip nat {{
                chain out {{
                    type nat hook postrouting priority 100
                    oifname wan {translate}
                }}
            }}
            table ip filter {{
                chain input {{
                    type filter hook input priority 0
                    iifname wan ct state new drop
                }}
                chain forward {{
                    type filter hook forward priority 0
                    iifname wan ct status dnat accept
                    iifname wan ct state new drop
                    {pass}
                }}
            }}
            "
        )
    }
}

/// The internet.
pub struct Internet {
    /// The switch that joins everything.
    core: Machine,
    addresses: u8,
    cables: u32,
    /// What uplinks are like; perfect if not said.
    quality: Option<Quality>,
    wires: Vec<Wire>,
}

/// A machine on the internet or behind a router.
pub struct Host {
    machine: Machine,
    /// Its own address.
    pub address: String,
}

/// A place for a host in a router's network.
pub struct Uplink {
    address: String,
    gateway: String,
}

/// A router and the network behind it.
pub struct Router {
    // The first to go: it serves on the machine.
    opener: Option<PortOpener>,
    machine: Machine,
    network: String,
    hosts: u8,
}

impl Host {
    /// What to put before a command line to run it there.
    pub fn on(&self) -> Vec<String> {
        self.machine.inside()
    }

    /// Leaves the network of one interface, and joins that of another, as a phone does that goes out of the house.
    pub async fn switch(&self, from: &str, to: &str, uplink: &Uplink) -> Result<(), LanError> {
        self.machine.ip(&format!("address flush dev {from}")).await?;
        self.machine.ip(&format!("link set {from} down")).await?;
        self.machine
            .ip(&format!("address add {}/24 dev {to}", uplink.address))
            .await?;
        self.machine
            .ip(&format!("route replace default via {} dev {to}", uplink.gateway))
            .await
    }
}

impl Internet {
    /// An internet with nobody on it. Fails where the system does not permit one; nothing that follows does.
    pub async fn set_up() -> Result<Self, LanError> {
        let core = Machine::first().await?;
        core.another().await?.nft(&Access::Carrier.rules()).await?;
        core.ip("link add net type bridge").await?;
        core.ip("link set net up").await?;
        Ok(Self {
            core,
            addresses: 0,
            cables: 0,
            quality: None,
            wires: Vec::new(),
        })
    }

    /// Whatever is plugged in from now on has an uplink of this quality: between two such hosts it counts twice each way.
    pub fn set_uplinks(&mut self, quality: Quality) {
        self.quality = Some(quality);
    }

    /// What each of those uplinks has carried so far, in the order in which they were plugged in.
    pub async fn carried(&mut self) -> Vec<Carried> {
        let mut carried = Vec::new();
        for wire in &mut self.wires {
            carried.push(wire.carried().await);
        }
        carried
    }

    /// Gives a machine an address on the internet.
    async fn plug_in(&mut self, machine: &Machine, interface: &str) -> Result<String, LanError> {
        self.addresses += 1;
        self.cables += 1;
        let (cable, address) = (format!("c{}", self.cables), format!("{NETWORK}.{}", self.addresses));
        let ends = ((&self.core, cable.as_str()), (machine, interface));
        match &self.quality {
            None => self.core.cable(&cable, machine, interface).await?,
            Some(quality) => {
                let wire = Wire::lay(ends.0, ends.1, quality, self.cables.into()).await?;
                self.wires.push(wire);
            }
        }
        self.core.ip(&format!("link set {cable} master net")).await?;
        machine.ip(&format!("address add {address}/24 dev {interface}")).await?;
        Ok(address)
    }

    /// A host with an address of its own.
    pub async fn public_host(&mut self) -> Result<Host, LanError> {
        let machine = self.core.another().await?;
        let address = self.plug_in(&machine, "eth").await?;
        Ok(Host { machine, address })
    }

    /// A router with nobody behind it.
    pub async fn router(&mut self, access: Access) -> Result<Router, LanError> {
        let machine = self.core.another().await?;
        self.plug_in(&machine, "wan").await?;
        // Private networks of several routers never meet; different ones keep logs readable.
        let network = format!("192.168.{}", self.addresses);
        machine.ip("link add lan type bridge").await?;
        machine.ip("link set lan up").await?;
        machine.ip(&format!("address add {network}.1/24 dev lan")).await?;
        machine.forward().await?;
        machine.nft(&access.rules()).await?;
        Ok(Router {
            opener: None,
            machine,
            network,
            hosts: 1,
        })
    }

    /// A host with such access.
    pub async fn host(&mut self, access: Access) -> Result<(Host, Option<Router>), LanError> {
        if access == Access::Public {
            return Ok((self.public_host().await?, None));
        }
        let mut router = self.router(access).await?;
        let host = router.host().await?;
        Ok((host, Some(router)))
    }
}

impl Router {
    /// A host behind the router.
    pub async fn host(&mut self) -> Result<Host, LanError> {
        let machine = self.machine.another().await?;
        let address = self.plug_in(&machine, "eth").await?;
        machine
            .ip(&format!("route add default via {}.1 dev eth", self.network))
            .await?;
        Ok(Host { machine, address })
    }

    /// Lays a cable to a host that is elsewhere. It has no address here until it switches.
    pub async fn offer(&mut self, host: &Host, interface: &str) -> Result<Uplink, LanError> {
        let address = self.plug_in(&host.machine, interface).await?;
        host.machine.ip(&format!("address flush dev {interface}")).await?;
        let gateway = format!("{}.1", self.network);
        Ok(Uplink { address, gateway })
    }

    async fn plug_in(&mut self, machine: &Machine, interface: &str) -> Result<String, LanError> {
        self.hosts += 1;
        let (cable, address) = (format!("c{}", self.hosts), format!("{}.{}", self.network, self.hosts));
        self.machine.cable(&cable, machine, interface).await?;
        self.machine.ip(&format!("link set {cable} master lan")).await?;
        machine.ip(&format!("address add {address}/24 dev {interface}")).await?;
        Ok(address)
    }

    /// From now on opens ports for hosts that ask (UPnP). Fails where there is no program for that.
    pub async fn open_ports(&mut self) -> Result<(), LanError> {
        self.opener = Some(PortOpener::start(&self.machine).await?);
        Ok(())
    }

    /// Cuts the way to the internet.
    pub async fn cut(&self) -> Result<(), LanError> {
        self.machine.ip("link set wan down").await
    }
}
