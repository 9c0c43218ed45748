//! A `text[]` parameter whose elements are copied from tuples, byte by byte.
//!
//! ```text
//!  array_recv (PostgreSQL utils/adt/arrayfuncs.c):
//!    i32 dimensions, i32 has nulls, u32 element type, i32 length, i32 lower bound,
//!    then for each element: i32 length or -1, bytes
//! ```

use crate::pg::{Tuple, TupleValue};
use bytes::{BufMut, BytesMut};
use std::error::Error;
use tokio_postgres::types::{IsNull, ToSql, Type};

/// One column of a set of rows.
#[derive(Default)]
pub(crate) struct TextArray {
    elements: i32,
    has_nulls: bool,
    body: BytesMut,
}

/// Why a value cannot become an element.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ElementError {
    /// The stream left the value out.
    Unsent,
    /// The stream was asked for text and sent binary.
    Binary,
    /// More than an array's length or a value's can say.
    TooLarge,
}

impl TextArray {
    /// Appends one value.
    pub(crate) fn push(&mut self, value: TupleValue<'_>) -> Result<(), ElementError> {
        match value {
            TupleValue::Null => {
                self.has_nulls = true;
                self.body.put_i32(-1);
            }
            TupleValue::Text(bytes) => {
                let length = i32::try_from(bytes.len()).map_err(|_| ElementError::TooLarge)?;
                self.body.reserve(4 + bytes.len());
                self.body.put_i32(length);
                self.body.put_slice(bytes);
            }
            TupleValue::UnchangedToast => return Err(ElementError::Unsent),
            TupleValue::Binary(_) => return Err(ElementError::Binary),
        }
        self.elements = self.elements.checked_add(1).ok_or(ElementError::TooLarge)?;
        Ok(())
    }
}

// Values are the user's: only the shape is shown.
impl std::fmt::Debug for TextArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "text[{}]", self.elements)
    }
}

impl ToSql for TextArray {
    fn to_sql(
        &self,
        _ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn Error + Sync + Send>> {
        out.reserve(20 + self.body.len());
        out.put_i32(i32::from(self.elements > 0));
        out.put_i32(i32::from(self.has_nulls));
        out.put_u32(Type::TEXT.oid());
        if self.elements > 0 {
            out.put_i32(self.elements);
            out.put_i32(1);
        }
        out.put_slice(&self.body);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }

    tokio_postgres::types::to_sql_checked!();
}

/// Puts a tuple's values where they go. What the tuple leaves out as unchanged TOAST, `elsewhere`
/// may know.
pub(crate) fn fill<'b>(
    slots: &[(usize, usize)],
    tuple: &'b Tuple,
    arrays: &mut [TextArray],
    elsewhere: impl Fn(usize) -> Option<TupleValue<'b>>,
) -> Result<(), ElementError> {
    let mut values = tuple.values().enumerate();
    let mut current = values.next();
    for (position, param) in slots {
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
        arrays[*param].push(value.unwrap_or(TupleValue::UnchangedToast))?;
    }
    Ok(())
}
