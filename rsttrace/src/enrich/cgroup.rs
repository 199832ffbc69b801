//! `/proc/PID/cgroup`: which unit, container and pod a process is in, by the names that systemd and
//! the container runtimes give to control groups. Pure.

use crate::model::{Container, Place, Runtime};

/// Control groups nest by half a dozen levels, and by twice that with one host in another.
const MAX_DEPTH: usize = 64;
/// `NAME_MAX`.
const MAX_NAME: usize = 255;
/// Digits of an id of Docker, containerd, CRI-O or Podman.
const ID_DIGITS: usize = 64;
/// Characters of BuildKit's ids.
const BUILDKIT_ID: usize = 25;

/// What all lines together tell. Those of systemd's own hierarchy and of cgroup v2 are the first to be
/// believed; a runtime may have made its groups in any.
pub fn place(text: &str) -> Place {
    let mut paths: Vec<(u8, &str)> = text.lines().filter_map(hierarchy).collect();
    paths.sort_by_key(|(rank, _)| *rank);
    let mut place = Place::default();
    for (rank, path) in paths {
        let names = names(path);
        place.container = place.container.or_else(|| names.iter().rev().find_map(|name| container(name)));
        place.pod = place.pod.or_else(|| names.iter().rev().find_map(|name| pod(name.name)));
        // Other hierarchies have units only where systemd controls them, as its own has.
        place.unit = place.unit.or_else(|| names.iter().rev().filter(|_| rank <= UNIFIED).find_map(|name| unit(name.name)));
    }
    place
}

/// systemd's own hierarchy of cgroup v1: has all units, whatever else is where.
const SYSTEMD: u8 = 0;
const UNIFIED: u8 = 1;
const OTHER: u8 = 2;

/// `N:controllers:/path`, by how much it is worth.
fn hierarchy(line: &str) -> Option<(u8, &str)> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    let rank = match controllers {
        "name=systemd" => SYSTEMD,
        "" => UNIFIED,
        _ => OTHER,
    };
    // The group was removed before its last process.
    Some((rank, path.strip_suffix(" (deleted)").unwrap_or(path)))
}

/// One group, and the name of the one that it is in.
#[derive(Clone, Copy, Debug)]
struct Group<'a> {
    name: &'a str,
    within: &'a str,
}

fn names(path: &str) -> Vec<Group<'_>> {
    let names = path.split('/').filter(|name| !name.is_empty() && name.len() <= MAX_NAME).take(MAX_DEPTH);
    let mut within = "";
    names.map(|name| Group { name, within: std::mem::replace(&mut within, name) }).collect()
}

/// The service or scope, if the group is one; a user's manager holds others, which are meant.
fn unit(name: &str) -> Option<String> {
    // systemd escapes names that the kernel might take for its own files.
    let name = name.strip_prefix('_').unwrap_or(name);
    let is_manager = name.starts_with("user@") && name.ends_with(".service");
    let is_unit = [".service", ".scope"].iter().any(|suffix| name.len() > suffix.len() && name.ends_with(suffix));
    (is_unit && !is_manager).then(|| name.to_owned())
}

fn container(group: &Group<'_>) -> Option<Container> {
    if group.name.ends_with(".slice") {
        return None;
    }
    let name = group.name.strip_suffix(".scope").unwrap_or(group.name);
    // "prefix-ID", or, where a runtime that was told of a slice uses no systemd, "slice:prefix:ID".
    let (prefix, id) = name.rsplit_once(['-', ':']).unwrap_or(("", name));
    if is_id(id) {
        // The monitor of a container is not in it.
        return (!prefix.contains("conmon")).then(|| Container { id: id.to_owned(), runtime: runtime(prefix, group.within) });
    }
    named(group.name, group.within)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_DIGITS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// By what stands before the id, else by the group that the container is in.
fn runtime(prefix: &str, within: &str) -> Option<Runtime> {
    let prefix = prefix.rsplit_once(':').map_or(prefix, |(_, name)| name);
    match (prefix, within) {
        ("docker", _) | ("", "docker") => Some(Runtime::Docker),
        ("cri-containerd" | "nerdctl", _) | ("", "k8s.io") => Some(Runtime::Containerd),
        ("crio", _) => Some(Runtime::CriO),
        ("libpod" | "libpod-payload", _) | ("", "libpod_parent") => Some(Runtime::Podman),
        _ => None,
    }
}

/// Containers that have a name instead of an id.
fn named(name: &str, within: &str) -> Option<Container> {
    let of = |id: &str, runtime| Some(Container { id: id.to_owned(), runtime: Some(runtime) }).filter(|container| !container.id.is_empty());
    // "lxc.monitor.NAME" is not in the container.
    if let Some(id) = name.strip_prefix("lxc.payload.") {
        return of(id, Runtime::Lxc);
    }
    match within {
        "lxc" | "lxc.payload" => of(name, Runtime::Lxc),
        "buildkit" if name.len() == BUILDKIT_ID && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z')) => {
            of(name, Runtime::BuildKit)
        }
        _ => None,
    }
}

/// `podUID` of the cgroupfs driver, `kubepods-burstable-podUID.slice` of systemd's, which has `_` for `-`.
fn pod(name: &str) -> Option<String> {
    let name = name.split(':').next().unwrap_or(name);
    let uid = match name.strip_suffix(".slice") {
        Some(slice) if slice.contains("kubepods") => slice.rsplit_once("-pod")?.1,
        Some(_) => return None,
        None => name.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    is_pod(&uid).then_some(uid)
}

/// A UUID; of a static pod, the hash of its manifest.
fn is_pod(uid: &str) -> bool {
    let digits = uid.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes: Vec<_> = uid.match_indices('-').map(|(at, _)| at).collect();
    digits == 32 && digits + dashes.len() == uid.len() && (dashes.is_empty() || dashes == [8, 13, 18, 23])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "8a9f7b3c2d1e0f4a5b6c7d8e9f0a1b2c3d4e5f60718293a4b5c6d7e8f9012345";
    const OUTER: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const POD: &str = "2c48913c-b29f-11e7-9350-020968147796";

    /// `unit | container | runtime | pod`, `-` for what is not known.
    fn told(text: &str) -> String {
        let Place { unit, container, pod } = place(text);
        let runtime = container.as_ref().and_then(|container| container.runtime).map(Runtime::name);
        let id = container.map(|container| container.id.replace(ID, "ID").replace(OUTER, "OUTER"));
        let words = [unit.map(|unit| unit.replace(ID, "ID")), id, runtime.map(str::to_owned), pod.map(|pod| pod.replace(POD, "POD"))];
        words.map(|word| word.unwrap_or_else(|| "-".to_owned())).join(" | ")
    }

    /// As these programs really name their groups; ID, OUTER, POD and P_O_D stand for the real thing.
    const CORPUS: &[(&str, &str)] = &[
        ("/", "- | - | - | -"),
        // systemd
        ("/init.scope", "init.scope | - | - | -"),
        ("/system.slice/nginx.service", "nginx.service | - | - | -"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service | - | - | -"),
        ("/system.slice/_cgroup.thing.service", "cgroup.thing.service | - | - | -"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope | - | - | -"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/foot.service", "foot.service | - | - | -"),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope | - | - | -"),
        ("/user.slice/user-1000.slice/user@1000.service", "- | - | - | -"),
        ("/system.slice/nginx.service (deleted)", "nginx.service | - | - | -"),
        ("/system.slice/foo.service/sub/group", "foo.service | - | - | -"),
        ("/machine.slice/machine-web.scope", "machine-web.scope | - | - | -"),
        ("/machine.slice/systemd-nspawn@web.service/payload/system.slice/cron.service", "cron.service | - | - | -"),
        // Docker
        ("/docker/ID", "- | ID | docker | -"),
        ("/system.slice/docker-ID.scope", "docker-ID.scope | ID | docker | -"),
        ("/system.slice/docker-ID.scope/init", "docker-ID.scope | ID | docker | -"),
        ("/system.slice/docker.service", "docker.service | - | - | -"),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/docker-ID.scope", "docker-ID.scope | ID | docker | -"),
        ("/docker/OUTER/docker/ID", "- | ID | docker | -"),
        ("/docker/OUTER/system.slice/containerd.service", "containerd.service | OUTER | docker | -"),
        ("/../../docker/ID", "- | ID | docker | -"),
        ("/ecs/0123456789abcdef0123456789abcdef/ID", "- | ID | - | -"),
        // Kubernetes
        ("/kubepods/besteffort/podPOD/ID", "- | ID | - | POD"),
        ("/kubepods/podPOD/ID", "- | ID | - | POD"),
        ("/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ID", "- | ID | - | 0123456789abcdef0123456789abcdef"),
        (
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podP_O_D.slice/cri-containerd-ID.scope",
            "cri-containerd-ID.scope | ID | containerd | POD",
        ),
        ("/kubepods.slice/kubepods-podP_O_D.slice/docker-ID.scope", "docker-ID.scope | ID | docker | POD"),
        ("/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_O_D.slice/crio-ID.scope", "crio-ID.scope | ID | cri-o | POD"),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_O_D.slice/crio-ID.scope/container",
            "crio-ID.scope | ID | cri-o | POD",
        ),
        (
            "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podP_O_D.slice/crio-conmon-ID.scope",
            "crio-conmon-ID.scope | - | - | POD",
        ),
        ("/kubepods/besteffort/podPOD/crio-ID", "- | ID | cri-o | POD"),
        ("/kubepods/besteffort/podPOD/crio-conmon-ID", "- | - | - | POD"),
        (
            "/system.slice/containerd.service/kubepods-burstable-podP_O_D.slice:cri-containerd:ID",
            "containerd.service | ID | containerd | POD",
        ),
        (
            "/docker/OUTER/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podP_O_D.slice/cri-containerd-ID.scope",
            "cri-containerd-ID.scope | ID | containerd | POD",
        ),
        ("/docker/OUTER/kubelet/kubepods/burstable/podPOD/ID", "- | ID | - | POD"),
        ("/k8s.io/ID", "- | ID | containerd | -"),
        ("/system.slice/nerdctl-ID.scope", "nerdctl-ID.scope | ID | containerd | -"),
        ("/default/ID", "- | ID | - | -"),
        // Podman
        ("/machine.slice/libpod-ID.scope", "libpod-ID.scope | ID | podman | -"),
        ("/machine.slice/libpod-ID.scope/container", "libpod-ID.scope | ID | podman | -"),
        ("/machine.slice/libpod-conmon-ID.scope", "libpod-conmon-ID.scope | - | - | -"),
        ("/libpod_parent/libpod-ID", "- | ID | podman | -"),
        ("/libpod_parent/libpod-ID/container", "- | ID | podman | -"),
        ("/libpod_parent/libpod-conmon-ID", "- | - | - | -"),
        ("/machine.slice/machine-libpod_pod_OUTER.slice/libpod-ID.scope/container", "libpod-ID.scope | ID | podman | -"),
        ("/machine.slice/machine-libpod_pod_OUTER.slice", "- | - | - | -"),
        ("/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container", "libpod-ID.scope | ID | podman | -"),
        ("/system.slice/web.service/libpod-payload-ID", "web.service | ID | podman | -"),
        // LXC and BuildKit have names
        ("/lxc/web1", "- | web1 | lxc | -"),
        ("/lxc.payload.web1/system.slice/cron.service", "cron.service | web1 | lxc | -"),
        ("/lxc.payload/web1", "- | web1 | lxc | -"),
        ("/lxc.monitor.web1", "- | - | - | -"),
        (
            "/system.slice/buildkit.service/buildkit/q3ksl1rbkx3b5k0lbx2gsi9w5",
            "buildkit.service | q3ksl1rbkx3b5k0lbx2gsi9w5 | buildkit | -",
        ),
        // Neither
        ("/podcast/web", "- | - | - | -"),
        ("/pod12345678901234567890123456789012x/ID", "- | ID | - | -"),
        ("/some/0123456789abcdef", "- | - | - | -"),
        ("/docker/8A9F7B3C2D1E0F4A5B6C7D8E9F0A1B2C3D4E5F60718293A4B5C6D7E8F9012345", "- | - | - | -"),
    ];

    fn real(path: &str) -> String {
        path.replace("ID", ID).replace("OUTER", OUTER).replace("POD", POD).replace("P_O_D", &POD.replace('-', "_"))
    }

    #[test]
    fn what_programs_call_their_groups_is_understood() {
        for (path, expected) in CORPUS {
            assert_eq!(told(&format!("0::{}\n", real(path))), *expected, "cgroup v2: {path}");
            let v1 = format!("12:pids:{0}\n11:memory:{0}\n1:name=systemd:{0}\n", real(path));
            assert_eq!(told(&v1), *expected, "cgroup v1: {path}");
        }
    }

    #[test]
    fn a_container_may_be_known_to_one_hierarchy_only() {
        let text = format!("9:name=systemd:/system.slice/docker.service\n4:memory:/docker/{ID}\n0::/\n");
        assert_eq!(told(&text), "docker.service | ID | docker | -");
        // The unit is systemd's to say.
        assert_eq!(told("4:memory:/system.slice/nginx.service\n0::/\n"), "- | - | - | -");
        assert_eq!(told("1:name=systemd:/system.slice/a.service\n0::/system.slice/b.service\n"), "a.service | - | - | -");
    }

    #[test]
    fn deep_and_long_paths_are_cut() {
        assert_eq!(told(&format!("0::/{}/docker/{ID}", "a/".repeat(MAX_DEPTH))), "- | - | - | -");
        assert_eq!(told(&format!("0::/{}.service", "a".repeat(MAX_NAME))), "- | - | - | -");
    }

    proptest! {
        #[test]
        fn any_text_tells_something_or_nothing(text in any::<String>()) {
            let _ = place(&text);
        }

        #[test]
        fn what_is_told_stands_in_the_path(path in "(/(docker|kubepods|lxc|pod[0-9a-f-]{0,36}|[a-z:._-]{0,9}|[0-9a-f]{64})(-[0-9a-f]{64})?(\\.scope|\\.slice|\\.service)?){0,6}") {
            let Place { unit, container, pod } = place(&format!("0::{path}\n"));
            for found in [unit, container.map(|container| container.id), pod.map(|pod| pod.replace('-', "_"))].into_iter().flatten() {
                prop_assert!(!found.is_empty() && path.replace('-', "_").contains(&found.replace('-', "_")), "{found}");
            }
        }
    }
}
