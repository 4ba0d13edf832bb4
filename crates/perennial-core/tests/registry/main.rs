//! What a registry decides, by the tables of the OCI Distribution Specification.

mod access;
mod collect;
mod requests;
