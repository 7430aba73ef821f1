//! Operations as bytes, and back.
//!
//! An operation is a byte that says which, then its fields, little-endian. Every sequence of bytes is a sequence of
//! operations: numbers out of range wrap, and what is missing at the end is zero. The format is ours and stays,
//! so that a corpus outlives versions of `arbitrary`.

use arbitrary::{Arbitrary, Unstructured};

/// More operations than this are left out, so that no input takes long.
const MOST: usize = 512;

/// Something that can be written as [`Arbitrary`] reads it.
pub trait Encode {
    /// Appends the bytes of this.
    fn encode(&self, out: &mut Vec<u8>);
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Encode for $number {
            fn encode(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}

numbers!(u8, u16, u32, u64);

/// A structure of numbers.
#[macro_export]
macro_rules! fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name { $($(#[$doc])* pub $field: $type),* }

        impl<'a> ::arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut ::arbitrary::Unstructured<'a>) -> ::arbitrary::Result<Self> {
                Ok(Self { $($field: u.arbitrary()?),* })
            }
        }

        impl $crate::ops::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                $($crate::ops::Encode::encode(&self.$field, out);)*
            }
        }
    };
}

/// Operations, each with its number and its fields. The comment on an operation tells what its fields are.
#[macro_export]
macro_rules! operations {
    ($(#[$meta:meta])* pub enum $name:ident($count:literal) {
        $($(#[$doc:meta])* $number:literal => $variant:ident {
            $($field:ident: $type:ty),* $(,)?
        }),* $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)]
        pub enum $name { $($(#[$doc])* $variant { $($field: $type),* }),* }

        impl<'a> ::arbitrary::Arbitrary<'a> for $name {
            fn arbitrary(u: &mut ::arbitrary::Unstructured<'a>) -> ::arbitrary::Result<Self> {
                Ok(match u.arbitrary::<u8>()? % $count {
                    $($number => Self::$variant { $($field: u.arbitrary()?),* },)*
                    other => unreachable!("operation {other}"),
                })
            }
        }

        impl $crate::ops::Encode for $name {
            fn encode(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant { $($field),* } => {
                        out.push($number);
                        $($crate::ops::Encode::encode($field, out);)*
                    })*
                }
            }
        }
    };
}

/// What is left of the bytes, as operations.
pub fn rest<'a, T: Arbitrary<'a>>(u: &mut Unstructured<'a>) -> impl Iterator<Item = T> {
    std::iter::from_fn(move || if u.is_empty() { None } else { u.arbitrary().ok() }).take(MOST)
}

/// The start of an input, and its operations.
pub fn parse<'a, H: Arbitrary<'a> + Default, T: Arbitrary<'a>>(data: &'a [u8]) -> (H, Vec<T>) {
    let mut u = Unstructured::new(data);
    let head = u.arbitrary().unwrap_or_default();
    let ops = rest(&mut u).collect();
    (head, ops)
}

/// The bytes that [`parse`] makes `head` and `ops` of.
pub fn unparse(head: &impl Encode, ops: &[impl Encode]) -> Vec<u8> {
    let mut out = Vec::new();
    head.encode(&mut out);
    for op in ops {
        op.encode(&mut out);
    }
    out
}

/// The first bytes of `value`, as wide as a register access can be: `len` from 1 to 8, wrapping.
pub fn access(value: &mut [u8; 8], len: u8) -> &mut [u8] {
    &mut value[..usize::from(len % 8) + 1]
}
