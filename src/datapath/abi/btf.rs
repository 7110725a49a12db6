//! A reader for just enough BTF to compare structs: `Documentation/bpf/btf.rst` of the kernel.
//! Test code: at run time the kernel checks the types.

use std::collections::BTreeMap;

/// (name, offset in bytes, size in bytes) of the fields of a struct.
pub type Fields = Vec<(String, usize, usize)>;

const MAGIC: u16 = 0xeb9f;
const KIND_INT: u32 = 1;
const KIND_PTR: u32 = 2;
const KIND_ARRAY: u32 = 3;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
const KIND_FWD: u32 = 7;
const KIND_FUNC_PROTO: u32 = 13;
const KIND_VAR: u32 = 14;
const KIND_DATASEC: u32 = 15;
const KIND_FLOAT: u32 = 16;
const KIND_DECL_TAG: u32 = 17;
const KIND_ENUM64: u32 = 19;

#[derive(Debug)]
enum Type {
    /// Integers, enums, floats: a size and nothing to follow.
    Sized(usize),
    Pointer,
    Array {
        element: u32,
        count: usize,
    },
    Struct {
        name: String,
        size: usize,
        members: Vec<(String, u32, usize)>,
    },
    /// typedef, const, volatile ...: look at the other type.
    Alias(u32),
    Other,
}

/// All types of one object, by id.
#[derive(Debug)]
pub struct Btf {
    types: Vec<Type>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u32(&mut self) -> u32 {
        let value = u32::from_le_bytes(self.bytes[self.at..self.at + 4].try_into().unwrap());
        self.at += 4;
        value
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }
}

impl Btf {
    /// Reads the `.BTF` section of an ELF object (64-bit, little-endian).
    pub fn of_object(object: &[u8]) -> Btf {
        Btf::parse(section(object, ".BTF").expect("the object has a .BTF section (compile with -g)"))
    }

    fn parse(btf: &[u8]) -> Btf {
        assert_eq!(u16::from_le_bytes([btf[0], btf[1]]), MAGIC, "BTF magic");
        let mut header = Reader { bytes: btf, at: 4 };
        let header_len = header.u32() as usize;
        let (type_off, type_len) = (header.u32() as usize, header.u32() as usize);
        let (str_off, str_len) = (header.u32() as usize, header.u32() as usize);
        let strings = &btf[header_len + str_off..][..str_len];
        let name = |offset: u32| -> String {
            let tail = &strings[offset as usize..];
            let end = tail.iter().position(|byte| *byte == 0).unwrap();
            String::from_utf8_lossy(&tail[..end]).into_owned()
        };
        let bytes = &btf[header_len + type_off..][..type_len];
        let mut reader = Reader { bytes, at: 0 };
        let mut types = vec![Type::Sized(0)]; // id 0 is void
        while reader.at < bytes.len() {
            let (name_off, info, size_or_type) = (reader.u32(), reader.u32(), reader.u32());
            let (kind, count) = ((info >> 24) & 0x1f, (info & 0xffff) as usize);
            types.push(match kind {
                KIND_INT => {
                    reader.skip(4);
                    Type::Sized(size_or_type as usize)
                }
                KIND_PTR => Type::Pointer,
                KIND_ARRAY => {
                    let (element, _index, count) = (reader.u32(), reader.u32(), reader.u32());
                    Type::Array { element, count: count as usize }
                }
                KIND_STRUCT | KIND_UNION => {
                    let members = (0..count)
                        .map(|_| (name(reader.u32()), reader.u32(), (reader.u32() & 0xff_ffff) as usize / 8))
                        .collect();
                    Type::Struct { name: name(name_off), size: size_or_type as usize, members }
                }
                KIND_ENUM => {
                    reader.skip(8 * count);
                    Type::Sized(size_or_type as usize)
                }
                KIND_ENUM64 => {
                    reader.skip(12 * count);
                    Type::Sized(size_or_type as usize)
                }
                KIND_FUNC_PROTO => {
                    reader.skip(8 * count);
                    Type::Other
                }
                KIND_VAR | KIND_DECL_TAG => {
                    reader.skip(4);
                    Type::Other
                }
                KIND_DATASEC => {
                    reader.skip(12 * count);
                    Type::Other
                }
                KIND_FLOAT => Type::Sized(size_or_type as usize),
                KIND_FWD => Type::Other,
                _ => Type::Alias(size_or_type),
            });
        }
        Btf { types }
    }

    fn size(&self, id: u32) -> usize {
        match &self.types[id as usize] {
            Type::Sized(size) | Type::Struct { size, .. } => *size,
            Type::Pointer => 8,
            Type::Array { element, count } => self.size(*element) * count,
            Type::Alias(other) => self.size(*other),
            Type::Other => 0,
        }
    }

    /// Size and fields of every named struct.
    pub fn structs(&self) -> BTreeMap<String, (usize, Fields)> {
        let fields = |members: &Vec<(String, u32, usize)>| {
            members.iter().map(|(name, id, offset)| (name.clone(), *offset, self.size(*id))).collect()
        };
        self.types
            .iter()
            .filter_map(|kind| match kind {
                Type::Struct { name, size, members } if !name.is_empty() => {
                    Some((name.clone(), (*size, fields(members))))
                }
                _ => None,
            })
            .collect()
    }
}

fn section<'a>(elf: &'a [u8], wanted: &str) -> Option<&'a [u8]> {
    let u16_at = |at: usize| usize::from(u16::from_le_bytes(elf[at..at + 2].try_into().unwrap()));
    let u32_at = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap()) as usize;
    let u64_at = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().unwrap()) as usize;
    assert_eq!(&elf[..6], b"\x7fELF\x02\x01", "a 64-bit little-endian ELF");
    let (table, entry, count, names) = (u64_at(0x28), u16_at(0x3a), u16_at(0x3c), u16_at(0x3e));
    let data = |index: usize| {
        let header = table + index * entry;
        &elf[u64_at(header + 0x18)..][..u64_at(header + 0x20)]
    };
    let names = data(names);
    (0..count).find_map(|index| {
        let name = &names[u32_at(table + index * entry)..];
        let end = name.iter().position(|byte| *byte == 0)?;
        (&name[..end] == wanted.as_bytes()).then(|| data(index))
    })
}

mod tests {
    use super::super::*;
    use super::Btf;
    use crate::datapath::loader::OBJECT;

    #[test]
    fn every_struct_is_laid_out_as_in_the_object() {
        let structs = Btf::of_object(OBJECT).structs();
        let mut compared = 0;
        let mut compare = |name: &str, size: usize, layout: Vec<(&'static str, usize, usize)>| {
            let Some((c_size, fields)) = structs.get(name) else { panic!("the object has no struct {name}") };
            assert_eq!(*c_size, size, "size of {name}");
            // `type` is a keyword here.
            let ours: Vec<(String, usize, usize)> = layout
                .into_iter()
                .map(|(field, offset, size)| (field.replace("kind", "type"), offset, size))
                .collect();
            assert_eq!(*fields, ours, "fields of {name}");
            compared += 1;
        };
        macro_rules! compare {
            ($($name:literal => $ty:ident),+ $(,)?) => {
                $( compare($name, size_of::<$ty>(), $ty::layout()); )+
            };
        }
        compare!(
            "sluice_addr" => Addr,
            "sluice_lpm_key" => LpmKey,
            "node_config" => NodeConfig,
            "ipcache_entry" => IpcacheValue,
            "endpoint_info" => EndpointInfo,
            "policy_key" => PolicyMapKey,
            "policy_slot" => PolicySlot,
            "policy_entry" => PolicyMapEntry,
            "policy_info" => PolicyInfoValue,
            "port_class_key" => PortClassKey,
            "ct_key" => CtKey,
            "ct_side" => CtSide,
            "ct_entry" => CtEntry,
            "ct_way" => CtWay,
            "ct_set" => CtSet,
            "ct_secret" => CtSecret,
            "ct_record" => CtRecord,
            "svc_key" => ServiceKey,
            "svc_entry" => ServiceValue,
            "backend_key" => BackendKey,
            "backend_entry" => BackendValue,
            "affinity_key" => AffinityKey,
            "affinity_entry" => AffinityValue,
            "frag_key" => FragKey,
            "frag_entry" => FragValue,
            "nat_key" => NatKey,
            "nat_entry" => NatValue,
            "counter" => Counter,
            "ep_counter" => EndpointCounter,
            "flow_event" => RawFlowEvent,
            "dns_pair" => DnsPair,
        );
        assert_eq!(compared, 31);
    }
}
