//! The process a run starts: the image configuration with the settings of the container on top (row A7).
