//! Fields of a message, written and read one after the other.
//!
//! Rule: a field is read only where its bytes are; no length from outside sizes memory before it is
//! checked.

use warmd_cbt::units::{Extent, Length, Offset};

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

const SHORT: Malformed = Malformed("the message is too short for its fields");

/// Appends one message.
pub(super) struct Writer<'a> {
    to: &'a mut Vec<u8>,
    begin: usize,
}

impl<'a> Writer<'a> {
    /// Leaves room for the length.
    pub(super) fn begin(to: &'a mut Vec<u8>) -> Self {
        let begin = to.len();
        to.extend_from_slice(&[0; 4]);
        Self { to, begin }
    }

    /// Fills the length in.
    pub(super) fn end(self) {
        self.end_before(0);
    }

    /// The same for a message whose last bytes follow separately.
    pub(super) fn end_before(self, more: usize) {
        let length = (self.to.len() - self.begin - 4 + more) as u32;
        self.to[self.begin..self.begin + 4].copy_from_slice(&length.to_be_bytes());
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.to.extend_from_slice(bytes);
        self
    }

    pub(super) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(super) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    pub(super) fn extent(&mut self, extent: Extent) -> &mut Self {
        self.u64(extent.start().0).u64(extent.len().0)
    }

    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.u16(text.len() as u16).bytes(text.as_bytes())
    }
}

/// Takes one message apart.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, left) = self.0.split_at_checked(count).ok_or(SHORT)?;
        self.0 = left;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| SHORT)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed("a flag is neither 0 nor 1")),
        }
    }

    pub(super) fn extent(&mut self) -> Result<Extent, Malformed> {
        let (start, length) = (Offset(self.u64()?), Length(self.u64()?));
        Extent::new(start, length).ok_or(Malformed("an extent is empty, or on no disk"))
    }

    pub(super) fn text(&mut self, most: usize) -> Result<String, Malformed> {
        let length = self.u16()? as usize;
        if length > most {
            return Err(Malformed("a text is too long"));
        }
        let text = str::from_utf8(self.take(length)?).map_err(|_| Malformed("a text is not UTF-8"))?;
        Ok(text.to_owned())
    }

    /// All bytes that are left.
    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    pub(super) fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("the message has more bytes than its fields")) }
    }
}
