//! Who and where, beyond the numbers: looked up in user space when a record is written, and kept beside
//! it, because none of it comes from the kernel half.

use std::{fmt, sync::Arc};

use super::Endpoint;

/// The names that go with one record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Of the process that holds the socket.
    pub owner: Option<Arc<Identity>>,
    /// What `ip netns` calls the socket's network namespace.
    pub netns: Option<Arc<str>>,
    pub nat: Option<Nat>,
}

/// What a process is; `None` is unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Path of the executable, as its own mount namespace has it.
    pub exe: Option<String>,
    /// Effective.
    pub uid: Option<u32>,
    /// Its name in this host's /etc/passwd.
    pub user: Option<Arc<str>>,
    /// Its number in its own PID namespace: what it calls itself.
    pub ns_tgid: Option<u32>,
    pub place: Place,
}

/// Where a process is kept, as its control group tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Service or scope of systemd.
    pub unit: Option<String>,
    pub container: Option<Container>,
    /// Kubernetes' uid.
    pub pod: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// 64 hexadecimal digits; LXC and BuildKit have names.
    pub id: String,
    pub runtime: Option<Runtime>,
}

impl Container {
    /// As much of the id as people are used to.
    pub fn short(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    Docker,
    Containerd,
    CriO,
    Podman,
    Lxc,
    BuildKit,
}

impl Runtime {
    pub const ALL: [Self; 6] = [Self::Docker, Self::Containerd, Self::CriO, Self::Podman, Self::Lxc, Self::BuildKit];

    /// The word of the JSON contract.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::CriO => "cri-o",
            Self::Podman => "podman",
            Self::Lxc => "lxc",
            Self::BuildKit => "buildkit",
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the addresses of a connection were before or behind translation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Nat {
    /// What the peer had dialled to reach our local address.
    pub original: Option<Endpoint>,
    /// What the remote address that we dialled was translated to.
    pub translated: Option<Endpoint>,
}
