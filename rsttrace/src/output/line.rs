//! A serializer for records, many in a burst. serde_json looks at every key for characters to escape, and passes it to
//! the writer in pieces: for a record of 90 keys that takes longer than all that comes before it. Our keys are plain
//! words; only values are looked at here.

use std::{
    fmt::Display,
    io::{self, Write},
};

use serde::ser::{
    Error as _, Impossible, Serialize, SerializeSeq, SerializeStruct, Serializer,
};
use serde_json::Error;

use super::json;

/// Writes one value to `W`.
pub struct Line<'a, W>(pub &'a mut W);

/// An object or an array that has been begun.
pub struct Members<'a, W> {
    out: &'a mut W,
    first: bool,
    end: u8,
}

impl<'a, W: Write> Line<'a, W> {
    fn plain(self, text: &[u8]) -> Result<(), Error> {
        self.0.write_all(text).map_err(Error::io)
    }

    fn number(self, n: impl itoa::Integer) -> Result<(), Error> {
        self.plain(itoa::Buffer::new().format(n).as_bytes())
    }

    fn begin(self, begin: u8, end: u8) -> Result<Members<'a, W>, Error> {
        self.0.write_all(&[begin]).map_err(Error::io)?;
        Ok(Members { out: self.0, first: true, end })
    }
}

fn unused<T>() -> Result<T, Error> {
    Err(Error::custom("no record has such a value"))
}

impl<'a, W: Write> Serializer for Line<'a, W> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Members<'a, W>;
    type SerializeStruct = Members<'a, W>;
    type SerializeMap = Impossible<(), Error>;
    type SerializeTuple = Impossible<(), Error>;
    type SerializeTupleStruct = Impossible<(), Error>;
    type SerializeTupleVariant = Impossible<(), Error>;
    type SerializeStructVariant = Impossible<(), Error>;

    fn serialize_bool(self, v: bool) -> Result<(), Error> {
        self.plain(if v { b"true" } else { b"false" })
    }

    fn serialize_i8(self, v: i8) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_i16(self, v: i16) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_i32(self, v: i32) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_i64(self, v: i64) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_u8(self, v: u8) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_u16(self, v: u16) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_u32(self, v: u32) -> Result<(), Error> {
        self.number(v)
    }

    fn serialize_u64(self, v: u64) -> Result<(), Error> {
        self.number(v)
    }

    #[inline]
    fn serialize_str(self, v: &str) -> Result<(), Error> {
        // Without an early return, so that it is done in wide steps.
        let is_plain = v.bytes().fold(true, |plain, b| plain & matches!(b, b' '..=b'~') & (b != b'"') & (b != b'\\'));
        if !is_plain {
            return json::escaped(self.0, v);
        }
        self.0.write_all(b"\"").and_then(|()| self.0.write_all(v.as_bytes())).and_then(|()| self.0.write_all(b"\"")).map_err(Error::io)
    }

    /// For dates and numbers: what is displayed must need no escaping.
    fn collect_str<T: ?Sized + Display>(self, v: &T) -> Result<(), Error> {
        write!(self.0, "\"{v}\"").map_err(Error::io)
    }

    fn serialize_none(self) -> Result<(), Error> {
        self.plain(b"null")
    }

    fn serialize_some<T: ?Sized + Serialize>(self, v: &T) -> Result<(), Error> {
        v.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), Error> {
        self.plain(b"null")
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(self, _: &'static str, v: &T) -> Result<(), Error> {
        v.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(self, _: &'static str, _: u32, _: &'static str, _: &T) -> Result<(), Error> {
        unused()
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<Members<'a, W>, Error> {
        self.begin(b'[', b']')
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Members<'a, W>, Error> {
        self.begin(b'{', b'}')
    }

    fn serialize_f32(self, _: f32) -> Result<(), Error> {
        unused()
    }

    fn serialize_f64(self, _: f64) -> Result<(), Error> {
        unused()
    }

    fn serialize_char(self, _: char) -> Result<(), Error> {
        unused()
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<(), Error> {
        unused()
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Error> {
        unused()
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, _: &'static str) -> Result<(), Error> {
        unused()
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, Error> {
        unused()
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, Error> {
        unused()
    }

    fn serialize_tuple_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self::SerializeTupleVariant, Error> {
        unused()
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Error> {
        unused()
    }

    fn serialize_struct_variant(self, _: &'static str, _: u32, _: &'static str, _: usize) -> Result<Self::SerializeStructVariant, Error> {
        unused()
    }
}

impl<W: Write> Members<'_, W> {
    fn separate(&mut self) -> io::Result<()> {
        if std::mem::replace(&mut self.first, false) { Ok(()) } else { self.out.write_all(b",") }
    }

    fn finish(self) -> Result<(), Error> {
        self.out.write_all(&[self.end]).map_err(Error::io)
    }
}

impl<W: Write> SerializeStruct for Members<'_, W> {
    type Ok = ();
    type Error = Error;

    #[inline]
    fn serialize_field<T: ?Sized + Serialize>(&mut self, key: &'static str, value: &T) -> Result<(), Error> {
        self.separate().map_err(Error::io)?;
        self.out.write_all(b"\"").and_then(|()| self.out.write_all(key.as_bytes())).and_then(|()| self.out.write_all(b"\":")).map_err(Error::io)?;
        value.serialize(Line(self.out))
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}

impl<W: Write> SerializeSeq for Members<'_, W> {
    type Ok = ();
    type Error = Error;

    fn serialize_element<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Error> {
        self.separate().map_err(Error::io)?;
        value.serialize(Line(self.out))
    }

    fn end(self) -> Result<(), Error> {
        self.finish()
    }
}
