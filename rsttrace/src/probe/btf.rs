//! The running kernel's own description of its types (BTF): member offsets, enumerators and
//! function arguments by name. `Documentation/bpf/btf.rst` in the kernel tree is the format.

use std::{fs, path::Path};

use thiserror::Error;

/// Where the kernel publishes its BTF (5.4+, `CONFIG_DEBUG_INFO_BTF`).
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xEB9F;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_TYPEDEF: u32 = 8;
const KIND_VOLATILE: u32 = 9;
const KIND_CONST: u32 = 10;
const KIND_RESTRICT: u32 = 11;
const KIND_FUNC: u32 = 12;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_TYPE_TAG: u32 = 18;

/// Why BTF could not be used.
#[derive(Debug, Error)]
pub enum BtfError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{path} is not usable BTF: {what} at byte {at}")]
    Malformed { path: String, what: &'static str, at: usize },
}

/// Parsed far enough to look names up.
pub struct KernelBtf {
    data: Vec<u8>,
    /// Offset of each type's header by id; id 0 is void.
    types: Vec<usize>,
    strings: usize,
}

impl KernelBtf {
    /// Reads and indexes a BTF file.
    ///
    /// # Errors
    /// When the file cannot be read or does not hold together.
    pub fn from_file(path: &Path) -> Result<Self, BtfError> {
        let name = path.display().to_string();
        let data = fs::read(path).map_err(|source| BtfError::Read { path: name.clone(), source })?;
        Self::parse(data).map_err(|(what, at)| BtfError::Malformed { path: name, what, at })
    }

    fn parse(data: Vec<u8>) -> Result<Self, (&'static str, usize)> {
        let word = |at: usize| read_u32(&data, at).ok_or(("cut short", at));
        if data.get(..2) != Some(&MAGIC.to_ne_bytes()[..]) {
            return Err(("wrong magic", 0));
        }
        let header = word(4)? as usize;
        let (type_off, type_len) = (word(8)? as usize, word(12)? as usize);
        let strings = header + word(16)? as usize;
        let end = header + type_off + type_len;
        let mut types = vec![0];
        let mut at = header + type_off;
        while at < end {
            types.push(at);
            let info = word(at + 4)?;
            let count = (info & 0xffff) as usize;
            let extra = match (info >> 24) & 0x1f {
                KIND_PTR | 7 | KIND_TYPEDEF..=KIND_FUNC | 16 | KIND_TYPE_TAG => 0,
                1 | 14 | 17 => 4,
                KIND_ARRAY => 12,
                KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * count,
                KIND_ENUM | KIND_FUNC_PROTO => 8 * count,
                _ => return Err(("unknown kind of type", at)),
            };
            at += 12 + extra;
        }
        Ok(Self { data, types, strings })
    }

    fn word(&self, at: usize) -> u32 {
        read_u32(&self.data, at).unwrap_or(0)
    }

    fn name(&self, at: usize) -> &str {
        let start = self.strings + self.word(at) as usize;
        let bytes = self.data.get(start..).unwrap_or_default();
        let end = bytes.iter().position(|&b| b == 0).unwrap_or(0);
        std::str::from_utf8(&bytes[..end]).unwrap_or_default()
    }

    fn kind(&self, at: usize) -> u32 {
        (self.word(at + 4) >> 24) & 0x1f
    }

    fn count(&self, at: usize) -> usize {
        (self.word(at + 4) & 0xffff) as usize
    }

    fn find(&self, kinds: &[u32], name: &str) -> Option<usize> {
        self.types.iter().skip(1).copied().find(|&at| kinds.contains(&self.kind(at)) && self.is_named(at, name))
    }

    /// Quicker than to read the name: it is asked of a hundred thousand types.
    fn is_named(&self, at: usize, name: &str) -> bool {
        let start = self.strings + self.word(at) as usize;
        self.data.get(start..).and_then(|text| text.strip_prefix(name.as_bytes())).is_some_and(|rest| rest.first() == Some(&0))
    }

    /// Strips names and qualifiers from a type id.
    fn resolve(&self, mut id: u32) -> Option<usize> {
        for _ in 0..32 {
            let at = *self.types.get(id as usize)?;
            match self.kind(at) {
                KIND_TYPEDEF | KIND_VOLATILE | KIND_CONST | KIND_RESTRICT | KIND_TYPE_TAG => id = self.word(at + 8),
                _ => return (id != 0).then_some(at),
            }
        }
        None
    }

    /// Byte offset of a member, given as a dotted path from a struct; members of unnamed structs
    /// and unions are found as C finds them. `None` for what does not exist, and for bit fields.
    pub fn offset(&self, of: &str, path: &str) -> Option<u32> {
        let mut at = self.find(&[KIND_STRUCT, KIND_UNION], of)?;
        let mut bits = 0;
        let mut parts = path.split('.').peekable();
        while let Some(part) = parts.next() {
            let (offset, id) = self.member(at, part, 0)?;
            bits += offset;
            if parts.peek().is_some() {
                at = self.resolve(id)?;
            }
        }
        (bits % 8 == 0).then_some(bits / 8)
    }

    fn member(&self, at: usize, name: &str, depth: usize) -> Option<(u32, u32)> {
        if depth > 8 || !matches!(self.kind(at), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        let has_bit_fields = self.word(at + 4) >> 31 == 1;
        for i in 0..self.count(at) {
            let member = at + 12 + 12 * i;
            let raw = self.word(member + 8);
            let (bits, width) = if has_bit_fields { (raw & 0xff_ffff, raw >> 24) } else { (raw, 0) };
            let own = self.name(member);
            if own == name {
                return (width == 0).then(|| (bits, self.word(member + 4)));
            }
            if own.is_empty()
                && let Some(inner) = self.resolve(self.word(member + 4))
                && let Some((offset, id)) = self.member(inner, name, depth + 1)
            {
                return Some((bits + offset, id));
            }
        }
        None
    }

    /// Names and values of an enum; empty where the kernel has none of that name.
    pub fn enumerators(&self, name: &str) -> Vec<(&str, i32)> {
        let Some(at) = self.find(&[KIND_ENUM], name) else { return Vec::new() };
        (0..self.count(at)).map(|i| at + 12 + 8 * i).map(|e| (self.name(e), self.word(e + 4).cast_signed())).collect()
    }

    /// Whether the kernel has a function of that name that BTF describes.
    pub fn has_function(&self, name: &str) -> bool {
        self.find(&[KIND_FUNC], name).is_some()
    }

    /// Size of a struct in bytes.
    pub fn size(&self, of: &str) -> Option<u32> {
        self.find(&[KIND_STRUCT], of).map(|at| self.word(at + 8))
    }

    /// Number of arguments of a function; `None` where the kernel does not have it.
    pub fn function_args(&self, name: &str) -> Option<usize> {
        let function = self.find(&[KIND_FUNC], name)?;
        let proto = self.resolve(self.word(function + 8))?;
        (self.kind(proto) == KIND_FUNC_PROTO).then(|| self.count(proto))
    }

    /// Number of arguments of a tracepoint, without the context that BTF counts first; `None`
    /// where the kernel does not have the tracepoint.
    pub fn tracepoint_args(&self, name: &str) -> Option<usize> {
        let typedef = self.find(&[KIND_TYPEDEF], &format!("btf_trace_{name}"))?;
        let pointer = self.resolve(self.word(typedef + 8))?;
        let proto = self.resolve(self.word(pointer + 8))?;
        (self.kind(proto) == KIND_FUNC_PROTO).then(|| self.count(proto).saturating_sub(1))
    }
}

fn read_u32(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(data.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn this_kernel_has_the_members_that_every_kernel_has() {
        let Ok(btf) = KernelBtf::from_file(Path::new(VMLINUX)) else {
            eprintln!("skipped: this kernel publishes no BTF");
            return;
        };
        assert_eq!(btf.offset("sock", "__sk_common.skc_daddr"), Some(0));
        assert!(btf.offset("tcp_sock", "snd_una") > btf.offset("tcp_sock", "inet_conn.icsk_ack.lrcvtime"));
        assert_eq!(btf.offset("sock", "no_such_member"), None);
        assert_eq!(btf.offset("no_such_struct", "x"), None);
        assert_eq!(btf.offset("tcp_sock", "nonagle"), None, "a bit field has no byte offset");
        assert!(btf.enumerators("sock_flags").contains(&("SOCK_DEAD", 0)));
        assert_eq!(btf.tracepoint_args("inet_sock_set_state"), Some(3));
        assert!(btf.has_function("tcp_sendmsg") && !btf.has_function("tcp_no_such"));
        assert_eq!(btf.tracepoint_args("tcp_fin"), None, "no kernel has it");
        assert_eq!((btf.function_args("tcp_sendmsg"), btf.function_args("tcp_no_such")), (Some(3), None));
        assert_eq!(btf.size("iphdr"), Some(20));
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_survived(mut data in proptest::collection::vec(any::<u8>(), 0..600), magic in any::<bool>()) {
            if magic && data.len() >= 24 {
                data[..2].copy_from_slice(&MAGIC.to_ne_bytes());
                data[4..8].copy_from_slice(&24u32.to_ne_bytes());
                data[8..12].copy_from_slice(&0u32.to_ne_bytes());
            }
            if let Ok(btf) = KernelBtf::parse(data) {
                let _ = btf.offset("a", "b.c");
                let _ = btf.enumerators("");
                let _ = btf.tracepoint_args("");
            }
        }
    }
}
