//! A bench on a host that it is not for.

pub fn main() {
    println!("skipped: this bench is for another kind of host");
}
