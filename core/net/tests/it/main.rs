//! Two and more networks in one process, over real loopback QUIC and TCP.

#[cfg(test)]
mod budget;
#[cfg(test)]
mod coding;
#[cfg(test)]
mod eavesdropper;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod hello;
#[cfg(test)]
mod node;
#[cfg(test)]
mod relayed;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod rogue;
#[cfg(test)]
mod strangers;
#[cfg(test)]
mod topics;
#[cfg(test)]
mod wire;
