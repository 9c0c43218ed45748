//! An array parameter whose elements are copied from tuples, byte by byte.
//!
//! ```text
//!  array_recv (PostgreSQL utils/adt/arrayfuncs.c):
//!    i32 dimensions, i32 has nulls, u32 element type, i32 length, i32 lower bound,
//!    then for each element: i32 length or -1, bytes
//! ```

use super::row::RowArray;
use super::statement::Element;
use crate::pg::{Tuple, TupleValue};
use bytes::{BufMut, BytesMut};
use std::error::Error;
use tokio_postgres::types::{IsNull, Kind, ToSql, Type};

/// The elements of an array, as the server reads them.
#[derive(Default)]
pub(super) struct ArrayBody {
    pub(super) elements: i32,
    pub(super) has_nulls: bool,
    pub(super) bytes: BytesMut,
}

impl ArrayBody {
    pub(super) fn count_element(&mut self) -> Result<(), ElementError> {
        self.elements = self.elements.checked_add(1).ok_or(ElementError::TooLarge)?;
        Ok(())
    }

    /// The array with its header, for a parameter that the server says is of this type.
    pub(super) fn put(&self, ty: &Type, out: &mut BytesMut) {
        let element_oid = match ty.kind() {
            Kind::Array(element) => element.oid(),
            // The server would refuse it.
            _ => 0,
        };
        out.reserve(20 + self.bytes.len());
        out.put_i32(i32::from(self.elements > 0));
        out.put_i32(i32::from(self.has_nulls));
        out.put_u32(element_oid);
        if self.elements > 0 {
            out.put_i32(self.elements);
            out.put_i32(1);
        }
        out.put_slice(&self.bytes);
    }
}

/// One column of a set of rows.
pub(crate) struct ColumnArray {
    element: Element,
    body: ArrayBody,
}

/// One parameter of a statement.
#[derive(Debug)]
pub(crate) enum Parameter {
    /// A column of the rows.
    Column(ColumnArray),
    /// The rows.
    Rows(RowArray),
}

impl Parameter {
    /// Bytes it holds.
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Column(array) => array.body.bytes.len(),
            Self::Rows(array) => array.body().bytes.len(),
        }
    }
}

impl ToSql for Parameter {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        match self {
            Self::Column(array) => array.body.put(ty, out),
            Self::Rows(array) => array.body().put(ty, out),
        }
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(ty.kind(), Kind::Array(_))
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Why a value cannot become part of a parameter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ElementError {
    /// The stream left the value out.
    Unsent,
    /// The stream was asked for one format and sent the other.
    OtherFormat,
    /// An array of a type of the user's that is too short to be one.
    NoArray,
    /// More than an array's length or a value's can say.
    TooLarge,
}

impl ColumnArray {
    pub(crate) fn new(element: Element) -> Self {
        Self {
            element,
            body: ArrayBody::default(),
        }
    }

    /// Appends one value.
    pub(crate) fn push(&mut self, value: TupleValue<'_>) -> Result<(), ElementError> {
        let body = &mut self.body;
        match (value, self.element) {
            (TupleValue::Null, _) => {
                body.has_nulls = true;
                body.bytes.put_i32(-1);
            }
            (TupleValue::Text(bytes), Element::Text)
            | (TupleValue::Binary(bytes), Element::Label | Element::Typed { .. }) => {
                put_sized(&mut body.bytes, bytes)?;
            }
            (TupleValue::UnchangedToast, _) => return Err(ElementError::Unsent),
            (TupleValue::Text(_) | TupleValue::Binary(_), _) => {
                return Err(ElementError::OtherFormat);
            }
        }
        body.count_element()
    }
}

/// A value after its length.
pub(super) fn put_sized(out: &mut BytesMut, bytes: &[u8]) -> Result<(), ElementError> {
    let length = i32::try_from(bytes.len()).map_err(|_| ElementError::TooLarge)?;
    out.reserve(4 + bytes.len());
    out.put_i32(length);
    out.put_slice(bytes);
    Ok(())
}

// Values are the user's: only the shape is shown.
impl std::fmt::Debug for ColumnArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}[{}]", self.element, self.body.elements)
    }
}

/// Puts a tuple's values where they go: by their positions, to the arrays of these numbers. What
/// the tuple leaves out as unchanged TOAST, `elsewhere` may know.
pub(crate) fn fill<'b>(
    slots: &[(usize, usize)],
    tuple: &'b Tuple,
    parameters: &mut [Parameter],
    elsewhere: impl Fn(usize) -> Option<TupleValue<'b>>,
) -> Result<(), ElementError> {
    let mut values = tuple.values().enumerate();
    let mut current = values.next();
    for (position, number) in slots {
        // Slots are in the order of positions, and several may share one: each value is passed once.
        while current.as_ref().is_some_and(|(at, _)| at < position) {
            current = values.next();
        }
        let at_position = current.as_ref().filter(|(at, _)| at == position);
        let value = at_position.map(|(_, value)| *value);
        let value = match value {
            Some(TupleValue::UnchangedToast) => elsewhere(*position),
            value => value,
        };
        if let Some(Parameter::Column(array)) = parameters.get_mut(*number) {
            array.push(value.unwrap_or(TupleValue::UnchangedToast))?;
        }
    }
    Ok(())
}
