//! CRC-32C as the superblock has it: started with all ones, not inverted at the end.

const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Returns the checksum. Bit by bit: it is made once for an image, of less than one block.
pub(super) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_check_value_of_crc_32c_comes_out() {
        assert_eq!(!super::crc32c(b"123456789"), 0xe306_9283);
    }
}
