//! The network without its TCP: each part by itself, and all of it under a guest's stack.

mod parts;
