//! Enumerations that may grow: a number on the binary wire, a name in JSON, and a value for what is not known yet.

/// Declares an open enumeration: a `u8` newtype with named constants.
///
/// Binary codecs carry the number; JSON carries the name, or `"unknown_N"` for a number without one, so that a
/// reader of an older version still reads the frame around it.
macro_rules! open_enum {
    ($(#[$doc:meta])* $name:ident { $( $(#[$vdoc:meta])* $konst:ident = $num:literal $text:literal ),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(pub u8);

        impl $name {
            $( $(#[$vdoc])* pub const $konst: Self = Self($num); )*

            /// Every named value, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$konst),*];

            /// The name JSON carries, if this value has one.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $( $num => Some($text), )* _ => None }
            }

            /// The value of a JSON name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $( $text => Some(Self::$konst), )*
                    other => other.strip_prefix("unknown_").and_then(|n| n.parse().ok()).map(Self),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() { Some(name) => f.write_str(name), None => write!(f, "unknown_{}", self.0) }
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { std::fmt::Display::fmt(self, f) }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                if s.is_human_readable() { s.collect_str(self) } else { s.serialize_u8(self.0) }
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                if d.is_human_readable() {
                    let name = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(d)?;
                    Self::from_name(&name).ok_or_else(|| serde::de::Error::custom(
                        format_args!("{name:?} is not a {}", stringify!($name))))
                } else {
                    <u8 as serde::Deserialize>::deserialize(d).map(Self)
                }
            }
        }
    };
}

pub(crate) use open_enum;
