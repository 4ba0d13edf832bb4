//! How entries of stacked layers combine: whiteouts, opaque directories, and what folding two layers does to each entry.
