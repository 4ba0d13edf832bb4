//! One container on the kernel.
