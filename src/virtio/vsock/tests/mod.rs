//! Tests of the socket device: packets written by hand on the one side, programs of the host on the other.

mod credit;
mod ends;
mod flow;
mod hostile;
mod life;
mod limits;
mod messages;
mod states;
mod support;
