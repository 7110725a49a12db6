//! What is known of a value before anything runs: enough to refuse misspelled members and comparisons that can never
//! hold, as Hubble does. Numbers of different types compare by value (Hubble wants `uint(80)` for a port).

use std::fmt;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};

/// Messages that are values of another kind in expressions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WellKnown {
    Timestamp,
    Duration,
    /// Of one value, which is null if the message is not set.
    Wrapper,
    /// Of any content; no flow of sluice has one, so it reads as null.
    Opaque,
}

impl WellKnown {
    pub fn of(message: &MessageDescriptor) -> Option<WellKnown> {
        Some(match message.full_name().strip_prefix("google.protobuf.")? {
            "Timestamp" => WellKnown::Timestamp,
            "Duration" => WellKnown::Duration,
            "BoolValue" | "Int32Value" | "Int64Value" | "UInt32Value" | "UInt64Value" | "FloatValue"
            | "DoubleValue" | "StringValue" | "BytesValue" => WellKnown::Wrapper,
            "Any" | "Struct" | "Value" | "ListValue" => WellKnown::Opaque,
            _ => return None,
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    Bool,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Timestamp,
    Duration,
    Null,
    Type,
}

impl Scalar {
    fn is_number(self) -> bool {
        matches!(self, Scalar::Int | Scalar::Uint | Scalar::Double)
    }

    fn name(self) -> &'static str {
        match self {
            Scalar::Bool => "bool",
            Scalar::Int => "int",
            Scalar::Uint => "uint",
            Scalar::Double => "double",
            Scalar::String => "string",
            Scalar::Bytes => "bytes",
            Scalar::Timestamp => "timestamp",
            Scalar::Duration => "duration",
            Scalar::Null => "null",
            Scalar::Type => "type",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Known {
    Scalar(Scalar),
    /// The value of a wrapper, or null.
    Nullable,
    Message(MessageDescriptor),
    List(Box<Known>),
    Map(Box<Known>),
    /// Nothing is known.
    Any,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Known::Scalar(scalar) => f.write_str(scalar.name()),
            Known::Nullable => f.write_str("wrapper"),
            Known::Message(message) => f.write_str(message.full_name()),
            Known::List(element) => write!(f, "list({element})"),
            Known::Map(value) => write!(f, "map({value})"),
            Known::Any => f.write_str("any"),
        }
    }
}

impl Known {
    pub fn list(element: Known) -> Known {
        Known::List(Box::new(element))
    }

    fn of_field(field: &FieldDescriptor) -> Known {
        let kind = field.kind();
        if field.is_map() {
            let value = kind.as_message().map(|entry| Known::of_kind(&entry.map_entry_value_field().kind()));
            return Known::Map(Box::new(value.unwrap_or(Known::Any)));
        }
        let one = Known::of_kind(&kind);
        if field.is_list() { Known::list(one) } else { one }
    }

    fn of_kind(kind: &Kind) -> Known {
        Known::Scalar(match kind {
            Kind::Bool => Scalar::Bool,
            Kind::Int32 | Kind::Int64 | Kind::Sint32 | Kind::Sint64 | Kind::Sfixed32 | Kind::Sfixed64 => {
                Scalar::Int
            }
            Kind::Enum(_) => Scalar::Int,
            Kind::Uint32 | Kind::Uint64 | Kind::Fixed32 | Kind::Fixed64 => Scalar::Uint,
            Kind::Float | Kind::Double => Scalar::Double,
            Kind::String => Scalar::String,
            Kind::Bytes => Scalar::Bytes,
            Kind::Message(message) => match WellKnown::of(message) {
                None => return Known::Message(message.clone()),
                Some(WellKnown::Timestamp) => Scalar::Timestamp,
                Some(WellKnown::Duration) => Scalar::Duration,
                Some(WellKnown::Wrapper) => return Known::Nullable,
                Some(WellKnown::Opaque) => return Known::Any,
            },
        })
    }

    /// What `.name` of this is.
    pub fn member(&self, name: &str) -> Result<Known, String> {
        match self {
            Known::Message(message) => message
                .get_field_by_name(name)
                .map(|field| Known::of_field(&field))
                .ok_or_else(|| format!("{} has no member {name}", message.full_name())),
            Known::Map(value) => Ok((**value).clone()),
            Known::Any => Ok(Known::Any),
            Known::Scalar(_) | Known::Nullable | Known::List(_) => {
                Err(format!("{self} has no member {name}"))
            }
        }
    }

    /// What `[index]` of this is.
    pub fn at_index(&self) -> Result<Known, String> {
        match self {
            Known::List(one) | Known::Map(one) => Ok((**one).clone()),
            Known::Any => Ok(Known::Any),
            Known::Scalar(_) | Known::Nullable | Known::Message(_) => Err(format!("{self} has no index")),
        }
    }

    /// What a loop over this goes through.
    pub fn element(&self) -> Result<Known, String> {
        match self {
            Known::List(element) => Ok((**element).clone()),
            Known::Map(_) | Known::Any => Ok(Known::Any),
            Known::Scalar(_) | Known::Nullable | Known::Message(_) => {
                Err(format!("a loop goes over a list or a map, not over {self}"))
            }
        }
    }

    /// What is one or the other.
    pub fn or(self, other: Known) -> Known {
        if self == other { self } else { Known::Any }
    }

    pub fn may_be(&self, scalar: Scalar) -> bool {
        matches!(self, Known::Any | Known::Nullable) || *self == Known::Scalar(scalar)
    }

    /// Whether they can be equal.
    pub fn may_equal(&self, other: &Known) -> bool {
        match (self, other) {
            (Known::Any | Known::Nullable, _) | (_, Known::Any | Known::Nullable) => true,
            (Known::Scalar(a), Known::Scalar(b)) => a == b || (a.is_number() && b.is_number()),
            (Known::Message(_), Known::Scalar(Scalar::Null)) => true,
            (Known::Scalar(Scalar::Null), Known::Message(_)) => true,
            (Known::Message(a), Known::Message(b)) => a == b,
            (Known::List(a), Known::List(b)) | (Known::Map(a), Known::Map(b)) => a.may_equal(b),
            _ => false,
        }
    }

    /// Whether one can be less than the other.
    pub fn may_order(&self, other: &Known) -> bool {
        let has_order = |known: &Known| match known {
            Known::Scalar(scalar) => !matches!(scalar, Scalar::Null | Scalar::Type),
            Known::Any | Known::Nullable => true,
            Known::Message(_) | Known::List(_) | Known::Map(_) => false,
        };
        has_order(self) && has_order(other) && self.may_equal(other)
    }
}
