//! A small assembler for BPF programs (RFC 9669): only the instructions that are needed here.

/// A register. R0 holds results, R1 to R5 arguments, R6 to R9 survive calls, R10 is the end of the stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R6 = 6,
    R7,
    R8,
    R9,
    R10,
}

/// Helper functions of the kernel (`enum bpf_func_id`).
#[derive(Debug, Clone, Copy)]
pub(crate) enum Helper {
    MapLookup = 1,
    SocketRelease = 86,
    SocketAssign = 124,
}

/// Arithmetic on 64 bits.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(crate) enum Op {
    Add = 0x07,
    Multiply = 0x27,
    And = 0x57,
    LeftShift = 0x67,
    RightShift = 0x77,
    Xor = 0xa7,
}

/// The same with a register instead of a number on the right.
const BY_REGISTER: u8 = 0x08;

/// Where a jump leads, until [`Assembler::finish`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// Instructions under way.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    code: Vec<[u8; 8]>,
    /// Instruction that each label stands before.
    places: Vec<usize>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// A label that is not placed yet.
    pub(crate) fn label(&mut self) -> Label {
        self.places.push(usize::MAX);
        Label(self.places.len() - 1)
    }

    /// The next instruction is where jumps to `label` lead.
    pub(crate) fn place(&mut self, label: Label) {
        let here = self.code.len();
        if let Some(place) = self.places.get_mut(label.0) {
            *place = here;
        }
    }

    fn emit(&mut self, opcode: u8, to: Reg, from: Reg, offset: i16, number: i32) {
        let [low, high] = offset.to_ne_bytes();
        let [a, b, c, d] = number.to_ne_bytes();
        self.code.push([opcode, (from as u8) << 4 | to as u8, low, high, a, b, c, d]);
    }

    /// `to = from`
    pub(crate) fn copy(&mut self, to: Reg, from: Reg) {
        self.emit(0xbf, to, from, 0, 0);
    }

    /// `to = number`
    pub(crate) fn set(&mut self, to: Reg, number: i32) {
        self.emit(0xb7, to, Reg::R0, 0, number);
    }

    /// `to = to op number`
    pub(crate) fn compute(&mut self, op: Op, to: Reg, number: i32) {
        self.emit(op as u8, to, Reg::R0, 0, number);
    }

    /// `to = to op from`
    pub(crate) fn combine(&mut self, op: Op, to: Reg, from: Reg) {
        self.emit(op as u8 | BY_REGISTER, to, from, 0, 0);
    }

    /// `to = *(u32 *)(from + offset)`
    pub(crate) fn load32(&mut self, to: Reg, from: Reg, offset: i16) {
        self.emit(0x61, to, from, offset, 0);
    }

    /// `to = *(u64 *)(from + offset)`
    pub(crate) fn load64(&mut self, to: Reg, from: Reg, offset: i16) {
        self.emit(0x79, to, from, offset, 0);
    }

    /// `R0 =` the byte of the packet at `offset`. Here and below R6 has to hold the context, R1 to R3 are lost, and a
    /// packet that is too short ends the program with 0.
    pub(crate) fn load_packet_byte(&mut self, offset: i32) {
        self.emit(0x30, Reg::R0, Reg::R0, 0, offset);
    }

    /// `R0 =` the number in network byte order in the four bytes of the packet at `offset`.
    pub(crate) fn load_packet32(&mut self, offset: i32) {
        self.emit(0x20, Reg::R0, Reg::R0, 0, offset);
    }

    /// `*(u32 *)(to + offset) = from`
    pub(crate) fn store32(&mut self, to: Reg, offset: i16, from: Reg) {
        self.emit(0x63, to, from, offset, 0);
    }

    /// `*(u32 *)(to + offset) = number`
    pub(crate) fn store32_number(&mut self, to: Reg, offset: i16, number: i32) {
        self.emit(0x62, to, Reg::R0, offset, number);
    }

    /// `to = the map with this descriptor`
    pub(crate) fn load_map(&mut self, to: Reg, map: i32) {
        // Two instructions long; the source register says that the number is a map's descriptor.
        self.emit(0x18, to, Reg::R1, 0, map);
        self.code.push([0; 8]);
    }

    /// `R0 = helper(R1, …)`
    pub(crate) fn call(&mut self, helper: Helper) {
        self.emit(0x85, Reg::R0, Reg::R0, 0, helper as i32);
    }

    /// `goto label`
    pub(crate) fn jump(&mut self, label: Label) {
        self.jump_by(0x05, Reg::R0, 0, label);
    }

    /// `if register == number goto label`, on the low 32 bits.
    pub(crate) fn jump_if_equal(&mut self, register: Reg, number: i32, label: Label) {
        self.jump_by(0x16, register, number, label);
    }

    /// `if register != number goto label`, on the low 32 bits.
    pub(crate) fn jump_unless_equal(&mut self, register: Reg, number: i32, label: Label) {
        self.jump_by(0x56, register, number, label);
    }

    /// `if pointer == 0 goto label`
    pub(crate) fn jump_if_null(&mut self, pointer: Reg, label: Label) {
        self.jump_by(0x15, pointer, 0, label);
    }

    /// `if pointer != 0 goto label`
    pub(crate) fn jump_unless_null(&mut self, pointer: Reg, label: Label) {
        self.jump_by(0x55, pointer, 0, label);
    }

    fn jump_by(&mut self, opcode: u8, register: Reg, number: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.emit(opcode, register, Reg::R0, 0, number);
    }

    /// `return R0`
    pub(crate) fn exit(&mut self) {
        self.emit(0x95, Reg::R0, Reg::R0, 0, 0);
    }

    /// The program. A label that was never placed makes a jump that the kernel refuses.
    pub(crate) fn finish(mut self) -> Vec<[u8; 8]> {
        for (at, label) in self.jumps {
            let target = self.places.get(label.0).copied().unwrap_or(usize::MAX);
            // From the instruction behind the jump.
            let distance = i16::try_from(target as i64 - at as i64 - 1).unwrap_or(i16::MAX).to_ne_bytes();
            if let Some([_, _, low, high, ..]) = self.code.get_mut(at) {
                [*low, *high] = distance;
            }
        }
        self.code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_have_the_kernels_layout_and_jumps_count_from_behind_themselves() {
        let mut code = Assembler::default();
        let end = code.label();
        code.load32(Reg::R2, Reg::R6, 60);
        code.jump_unless_equal(Reg::R2, 17, end);
        code.set(Reg::R0, 1);
        code.place(end);
        code.exit();
        let expected: [[u8; 8]; 4] = [
            [0x61, 0x62, 60, 0, 0, 0, 0, 0],
            [0x56, 0x02, 1, 0, 17, 0, 0, 0],
            [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
            [0x95, 0x00, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(code.finish(), expected);
    }
}
