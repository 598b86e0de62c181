//! Two and more networks in one process, over real loopback QUIC and TCP.

#[cfg(test)]
mod node;
#[cfg(test)]
mod requests;
