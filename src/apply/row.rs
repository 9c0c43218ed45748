//! Rows of a replica table, made of tuples byte by byte: as values of the table's row type, or as
//! the rows of a binary COPY.
//!
//! ```text
//!  record_recv (PostgreSQL utils/adt/rowtypes.c):   i32 fields, for each: u32 type, i32 length or -1, bytes
//!  COPY … (FORMAT binary) (manual, "COPY"):         i16 fields, for each:           i32 length or -1, bytes
//! ```
//!
//! An array of a type of the user's says of which: four bytes are the replica's instead of the
//! source's, all others pass as they came.

use super::array::{ArrayBody, ElementError, put_sized};
use crate::mapping::{FieldValue, RowType};
use crate::pg::{Tuple, TupleValue};
use bytes::{BufMut, Bytes, BytesMut};

/// Where an array keeps the object id of its elements' type: after dimensions and flags.
const ELEMENT_TYPE_AT: usize = 8;

/// The bytes before and after the rows of a binary COPY.
const COPY_HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const COPY_TRAILER: i16 = -1;

/// A set of rows as an array of the table's row type.
#[derive(Default)]
pub(crate) struct RowArray {
    body: ArrayBody,
}

// Values are the user's: only the shape is shown.
impl std::fmt::Debug for RowArray {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rows[{}]", self.body.elements)
    }
}

impl RowArray {
    pub(super) fn body(&self) -> &ArrayBody {
        &self.body
    }

    /// Appends a row of `row_type`: of `values` by position those that are `wanted`, and NULL.
    pub(crate) fn push(
        &mut self,
        row_type: &RowType,
        wanted: impl Fn(usize) -> bool,
        values: &[TupleValue<'_>],
    ) -> Result<(), ElementError> {
        let out = &mut self.body.bytes;
        let length_at = out.len();
        out.put_i32(0);
        out.put_i32(i32::try_from(row_type.fields.len()).map_err(|_| ElementError::TooLarge)?);
        for field in &row_type.fields {
            out.put_u32(field.type_oid);
            match field.value.filter(|value| wanted(value.position)) {
                Some(from) => put_value(out, from, values)?,
                None => out.put_i32(-1),
            }
        }
        let length = out.len() - length_at - 4;
        let length = i32::try_from(length).map_err(|_| ElementError::TooLarge)?;
        if let Some(place) = out.get_mut(length_at..length_at + 4) {
            place.copy_from_slice(&length.to_be_bytes());
        }
        self.body.count_element()
    }
}

/// What a COPY into the table is sent, piece by piece.
pub(crate) struct CopyRows {
    bytes: BytesMut,
    fields: i16,
    /// The source's rows have the same columns in the same order, and no byte is exchanged.
    are_as_sent: bool,
}

impl CopyRows {
    pub(crate) fn new(row_type: &RowType) -> Result<Self, ElementError> {
        let values = || row_type.fields.iter().filter_map(|field| field.value);
        let is_as_sent = |(place, from): (usize, FieldValue)| {
            from.position == place && from.element_oid.is_none()
        };
        let mut bytes = BytesMut::new();
        bytes.put_slice(COPY_HEADER);
        Ok(Self {
            bytes,
            fields: i16::try_from(values().count()).map_err(|_| ElementError::TooLarge)?,
            are_as_sent: values().enumerate().all(is_as_sent),
        })
    }

    /// Appends a row with the bytes it was sent in; false, and nothing, where that will not do.
    pub(crate) fn push_as_sent(&mut self, row: &Tuple) -> bool {
        if !self.are_as_sent || i16::try_from(row.len()) != Ok(self.fields) {
            return false;
        }
        let begun = self.bytes.len();
        self.bytes.put_i16(self.fields);
        let is_whole = row.put_copy_fields(&mut self.bytes);
        if !is_whole {
            self.bytes.truncate(begun);
        }
        is_whole
    }

    /// Appends a row.
    pub(crate) fn push(
        &mut self,
        row_type: &RowType,
        values: &[TupleValue<'_>],
    ) -> Result<(), ElementError> {
        self.bytes.put_i16(self.fields);
        for from in row_type.fields.iter().filter_map(|field| field.value) {
            put_value(&mut self.bytes, from, values)?;
        }
        Ok(())
    }

    /// Ends the rows.
    pub(crate) fn finish(&mut self) {
        self.bytes.put_i16(COPY_TRAILER);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What has gathered.
    pub(crate) fn take(&mut self) -> Bytes {
        self.bytes.split().freeze()
    }
}

fn put_value(
    out: &mut BytesMut,
    from: FieldValue,
    values: &[TupleValue<'_>],
) -> Result<(), ElementError> {
    let bytes = match values.get(from.position) {
        Some(TupleValue::Binary(bytes)) => *bytes,
        Some(TupleValue::Null) => {
            out.put_i32(-1);
            return Ok(());
        }
        Some(TupleValue::Text(_)) => return Err(ElementError::OtherFormat),
        Some(TupleValue::UnchangedToast) | None => return Err(ElementError::Unsent),
    };
    let begins_at = out.len() + 4;
    put_sized(out, bytes)?;
    if let Some(oid) = from.element_oid {
        let at = begins_at + ELEMENT_TYPE_AT;
        let place = out.get_mut(at..at + 4).ok_or(ElementError::NoArray)?;
        place.copy_from_slice(&oid.to_be_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Field;

    fn row_type() -> RowType {
        let field = |type_oid, value: Option<(usize, Option<u32>)>| Field {
            name: "c".into(),
            type_oid,
            value: value.map(|(position, element_oid)| FieldValue {
                position,
                element_oid,
            }),
        };
        RowType {
            fields: vec![
                field(25, Some((1, None))),
                field(23, None),
                field(20_000, Some((0, Some(20_001)))),
            ],
            may_copy: true,
        }
    }

    const MOODS: &[u8] = b"\0\0\0\x01\0\0\0\0\0\0\x40\x00\0\0\0\x01\0\0\0\x01\0\0\0\x02ok";

    #[test]
    fn a_row_keeps_its_bytes_and_takes_the_replicas_types() {
        let mut rows = RowArray::default();
        let values = [TupleValue::Binary(MOODS), TupleValue::Binary(b"hi")];
        rows.push(&row_type(), |_| true, &values).unwrap();
        let mut moods = MOODS.to_vec();
        moods[8..12].copy_from_slice(&20_001u32.to_be_bytes());
        let expected = [
            b"\0\0\0\x3c\0\0\0\x03".as_slice(),
            b"\0\0\0\x19\0\0\0\x02hi",
            b"\0\0\0\x17\xff\xff\xff\xff",
            b"\0\0\x4e\x20\0\0\0\x1a",
            &moods,
        ]
        .concat();
        let length = u32::try_from(expected.len() - 4).unwrap().to_be_bytes();
        assert_eq!(rows.body.bytes[..4], length);
        assert_eq!(rows.body.bytes[4..], expected[4..]);
        assert_eq!(rows.body.elements, 1);
    }

    #[test]
    fn what_is_not_wanted_is_null_and_what_is_must_be_there() {
        let mut rows = RowArray::default();
        let values = [TupleValue::UnchangedToast, TupleValue::Binary(b"")];
        assert_eq!(
            rows.push(&row_type(), |_| true, &values),
            Err(ElementError::Unsent)
        );
        let mut rows = RowArray::default();
        rows.push(&row_type(), |position| position == 1, &values)
            .unwrap();
        assert!(rows.body.bytes.ends_with(b"\0\0\x4e\x20\xff\xff\xff\xff"));
        let text = [TupleValue::Null, TupleValue::Text(b"a")];
        assert_eq!(
            rows.push(&row_type(), |_| true, &text),
            Err(ElementError::OtherFormat)
        );
        let short = [TupleValue::Binary(b"ok"), TupleValue::Null];
        assert_eq!(
            rows.push(&row_type(), |_| true, &short),
            Err(ElementError::NoArray)
        );
    }

    #[test]
    fn a_copy_has_the_filled_columns_only() {
        let mut rows = CopyRows::new(&row_type()).unwrap();
        let values = [TupleValue::Null, TupleValue::Binary(b"hi")];
        rows.push(&row_type(), &values).unwrap();
        rows.finish();
        let expected = [COPY_HEADER, b"\0\x02\0\0\0\x02hi\xff\xff\xff\xff\xff\xff"].concat();
        assert_eq!(rows.take(), expected);
    }

    #[test]
    fn a_row_is_copied_as_it_was_sent_where_nothing_is_exchanged() {
        let tuple = |wire: &[u8]| Tuple::decode(&mut Bytes::copy_from_slice(wire)).unwrap();
        let sent = tuple(b"\0\x02b\0\0\0\x02hin");
        let mut rows = CopyRows::new(&row_type()).unwrap();
        assert!(
            !rows.push_as_sent(&sent),
            "its columns stand in another order"
        );
        let mut row_type = row_type();
        row_type.fields.swap(0, 2);
        let mut rows = CopyRows::new(&row_type).unwrap();
        assert!(!rows.push_as_sent(&sent), "an array names its type");
        for field in &mut row_type.fields {
            if let Some(value) = &mut field.value {
                value.element_oid = None;
            }
        }
        let mut rows = CopyRows::new(&row_type).unwrap();
        assert!(!rows.push_as_sent(&tuple(b"\0\x02b\0\0\0\x02hiu")));
        assert!(!rows.push_as_sent(&tuple(b"\0\x01n")));
        assert!(rows.push_as_sent(&sent));
        let mut expected = CopyRows::new(&row_type).unwrap();
        let values: Vec<_> = sent.values().collect();
        expected.push(&row_type, &values).unwrap();
        assert_eq!(rows.take(), expected.take());
    }
}
