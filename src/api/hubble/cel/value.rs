//! Protobuf messages as values of the interpreter, read where they lie.
//!
//! As protobuf has it: a scalar that is not set is its default, a message that is not set reads as the empty one, a
//! wrapper (`google.protobuf.BoolValue`) that is not set is null. Times and durations are values of [`super::time`].
//! What an expression reads is paid for with the meter.

use std::borrow::Cow;
use std::collections::HashMap;

use cel::ExecutionError;
use cel::common::traits::Indexer;
use cel::common::types::{
    CelBool, CelBytes, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString, CelUInt, Kind, Type,
};
use cel::common::value::{CowVal, Val};
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, MapKey, MessageDescriptor, ReflectMessage as _, Value};

use super::meter::{Meter, text_units};
use super::time::{Span, Time};
use super::types::WellKnown;

/// A member of this name and a member's name says whether that is set; no source can say it.
pub const PRESENCE: &str = "has ";
/// The encoded message: messages of unknown lifetimes cannot be told apart otherwise.
const ENCODED: &str = "encoded message";

static MESSAGE_TYPE: Type = Type::new_struct_type("message");

type Answer<'b, 'v> = Result<CowVal<'b, 'v>, ExecutionError>;

/// A message that is set somewhere in a flow, or is not.
#[derive(Clone, Debug)]
pub struct Message<'m> {
    place: Place<'m>,
    meter: &'m Meter,
}

#[derive(Clone, Debug)]
enum Place<'m> {
    Set(&'m DynamicMessage),
    Unset(MessageDescriptor),
}

impl<'m> Message<'m> {
    pub fn set(message: &'m DynamicMessage, meter: &'m Meter) -> Message<'m> {
        Message { place: Place::Set(message), meter }
    }

    fn descriptor(&self) -> MessageDescriptor {
        match &self.place {
            Place::Set(message) => message.descriptor(),
            Place::Unset(descriptor) => descriptor.clone(),
        }
    }

    /// A member, and its value if it is set.
    fn member(&self, name: &str) -> Result<(FieldDescriptor, Option<&'m Value>), ExecutionError> {
        let field =
            self.descriptor().get_field_by_name(name).ok_or_else(|| ExecutionError::no_such_key(name))?;
        let value = match self.place {
            Place::Set(message) if message.has_field(&field) => match message.get_field(&field) {
                Cow::Borrowed(value) => Some(value),
                Cow::Owned(_) => None,
            },
            _ => None,
        };
        Ok((field, value))
    }

    fn read<'b>(&self, name: &str) -> Answer<'b, 'm> {
        if let Some(name) = name.strip_prefix(PRESENCE) {
            return Ok(CowVal::owned(CelBool::from(self.member(name)?.1.is_some())));
        }
        if name == ENCODED {
            let encoded = match self.place {
                Place::Set(message) => message.encode_to_vec(),
                Place::Unset(_) => Vec::new(),
            };
            self.meter.spend(text_units(encoded.len()))?;
            return Ok(CowVal::owned(CelBytes::from(encoded)));
        }
        let (field, value) = self.member(name)?;
        match value {
            Some(value) => set(value, self.meter),
            None => unset(&field, self.meter),
        }
    }
}

fn set<'b, 'm>(value: &'m Value, meter: &'m Meter) -> Answer<'b, 'm> {
    meter.spend(1)?;
    Ok(match value {
        Value::Bool(bool) => CowVal::owned(CelBool::from(*bool)),
        Value::I32(int) | Value::EnumNumber(int) => CowVal::owned(CelInt::from(i64::from(*int))),
        Value::I64(int) => CowVal::owned(CelInt::from(*int)),
        Value::U32(uint) => CowVal::owned(CelUInt::from(u64::from(*uint))),
        Value::U64(uint) => CowVal::owned(CelUInt::from(*uint)),
        Value::F32(double) => CowVal::owned(CelDouble::from(f64::from(*double))),
        Value::F64(double) => CowVal::owned(CelDouble::from(*double)),
        Value::String(text) => {
            meter.spend(text_units(text.len()))?;
            CowVal::owned(CelString::from(text.as_str()))
        }
        Value::Bytes(bytes) => {
            meter.spend(text_units(bytes.len()))?;
            CowVal::owned(CelBytes::from(bytes.to_vec()))
        }
        Value::Message(message) => return whole(message, meter),
        Value::List(values) => {
            let values: Result<Vec<_>, _> =
                values.iter().map(|value| set(value, meter).map(CowVal::into_owned)).collect();
            CowVal::owned(CelList::from(values?))
        }
        Value::Map(entries) => {
            let entries: Result<HashMap<_, _>, _> = entries
                .iter()
                .map(|(name, value)| Ok((key(name), set(value, meter)?.into_owned())))
                .collect();
            CowVal::owned(CelMap::from(entries?))
        }
    })
}

fn key(key: &MapKey) -> CelMapKey<'_> {
    match key {
        MapKey::Bool(bool) => CelMapKey::from(*bool),
        MapKey::I32(int) => CelMapKey::from(i64::from(*int)),
        MapKey::I64(int) => CelMapKey::from(*int),
        MapKey::U32(uint) => CelMapKey::from(u64::from(*uint)),
        MapKey::U64(uint) => CelMapKey::from(*uint),
        MapKey::String(text) => CelMapKey::from(text.as_str()),
    }
}

fn whole<'b, 'm>(message: &'m DynamicMessage, meter: &'m Meter) -> Answer<'b, 'm> {
    let number = |name| match message.get_field_by_name(name).as_deref() {
        Some(Value::I64(number)) => *number,
        Some(Value::I32(number)) => i64::from(*number),
        _ => 0,
    };
    match WellKnown::of(&message.descriptor()) {
        None => Ok(CowVal::owned(Message::set(message, meter))),
        Some(WellKnown::Timestamp) => Time::new(number("seconds"), number("nanos")).map(CowVal::owned),
        Some(WellKnown::Duration) => Span::new(number("seconds"), number("nanos")).map(CowVal::owned),
        Some(WellKnown::Wrapper) => Message::set(message, meter).read("value"),
        Some(WellKnown::Opaque) => Ok(CowVal::owned(CelNull)),
    }
}

fn unset<'b, 'm>(field: &FieldDescriptor, meter: &'m Meter) -> Answer<'b, 'm> {
    meter.spend(1)?;
    if field.is_list() {
        return Ok(CowVal::owned(CelList::default()));
    }
    if field.is_map() {
        return Ok(CowVal::owned(CelMap::from(HashMap::new())));
    }
    let kind = field.kind();
    let Some(message) = kind.as_message() else {
        return Ok(match Value::default_value(&kind) {
            Value::Bool(bool) => CowVal::owned(CelBool::from(bool)),
            Value::I32(int) | Value::EnumNumber(int) => CowVal::owned(CelInt::from(i64::from(int))),
            Value::I64(int) => CowVal::owned(CelInt::from(int)),
            Value::U32(uint) => CowVal::owned(CelUInt::from(u64::from(uint))),
            Value::U64(uint) => CowVal::owned(CelUInt::from(uint)),
            Value::F32(double) => CowVal::owned(CelDouble::from(f64::from(double))),
            Value::F64(double) => CowVal::owned(CelDouble::from(double)),
            Value::String(text) => CowVal::owned(CelString::from(text)),
            Value::Bytes(bytes) => CowVal::owned(CelBytes::from(bytes.to_vec())),
            Value::Message(_) | Value::List(_) | Value::Map(_) => CowVal::owned(CelNull),
        });
    };
    match WellKnown::of(message) {
        None => Ok(CowVal::owned(Message { place: Place::Unset(message.clone()), meter })),
        Some(WellKnown::Timestamp) => Time::new(0, 0).map(CowVal::owned),
        Some(WellKnown::Duration) => Span::new(0, 0).map(CowVal::owned),
        Some(WellKnown::Wrapper | WellKnown::Opaque) => Ok(CowVal::owned(CelNull)),
    }
}

impl<'m> Val for Message<'m> {
    fn get_type(&self) -> &Type {
        &MESSAGE_TYPE
    }

    fn cel_type() -> &'static Type {
        &MESSAGE_TYPE
    }

    fn as_indexer<'b, 'v>(&'b self) -> Option<&'b (dyn Indexer + 'v)>
    where
        Self: 'v,
    {
        Some(self)
    }

    fn equals(&self, other: &dyn Val) -> bool {
        if other.get_type().kind() != Kind::Struct {
            return false;
        }
        let Some(Ok(other)) = other.as_indexer().map(|other| other.get(&CelString::from(ENCODED))) else {
            return false;
        };
        self.read(ENCODED).is_ok_and(|own| own.as_ref().equals(other.as_ref()))
    }

    fn clone_as_boxed<'v>(&self) -> Box<dyn Val + 'v>
    where
        Self: 'v,
    {
        Box::new(self.clone())
    }
}

impl Indexer for Message<'_> {
    fn get<'b, 'v>(&'b self, name: &dyn Val) -> Answer<'b, 'v>
    where
        Self: 'v,
    {
        match name.downcast_ref::<CelString<'_>>() {
            Some(name) => self.read(name.inner()),
            None => Err(ExecutionError::UnexpectedType {
                got: name.get_type().name().to_owned(),
                want: "string".to_owned(),
            }),
        }
    }

    fn steal<'v>(self: Box<Self>, name: &dyn Val) -> Result<Box<dyn Val + 'v>, ExecutionError>
    where
        Self: 'v,
    {
        self.get(name).map(CowVal::into_owned)
    }
}
