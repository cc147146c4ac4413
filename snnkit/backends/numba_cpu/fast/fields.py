"""Names of the columns in the tables that packing writes and compiled code reads."""

from __future__ import annotations

(
    # arguments of a row kernel; addresses are int64
    A_SITES, A_COUNT, A_STRIDE, A_INIT, A_INIT_STEP, A_SEGMENTS, A_SEGMENT_COUNT, A_SPAN,
    A_COLUMN_WORDS, A_WEIGHT, A_SITE_BYTES, A_WORDS,
    # gather: base of the source map, scratch for the joined list, number of the empty block
    A_BASE, A_BLOCKS, A_PLACES, A_NONE,
    # charges of the sites, one behind the other: written by gather and block, read by fire
    A_OUT, A_OUT_STEP,
    # fire
    A_GROUPS, A_RATE, A_SHIFT, A_TOP, A_TARGET, A_TARGET_STEP, A_LIST, A_KEY, A_PREFIX, A_WIDTH,
    # input: A_SILENT is 1 where the float zero has level zero
    A_SOURCE, A_PLANE, A_CHANNELS, A_SCALE, A_OFFSET, A_LOW, A_HIGH, A_ZERO, A_COLUMNS, A_SILENT,
    # of a step: addresses of its row, of maps, charges and code; scratch; floats of the sample
    A_STEP, A_MAPS, A_CHARGES, A_CODE, A_ROW, A_INPUT, A_VISITS, A_EVENTS,
    # of a run: addresses and numbers of steps, of rows of what is kept and of what is counted
    A_STEPS, A_STEP_COUNT, A_TAPS, A_TALLIES, A_TALLY_COUNT,
) = range(51)  # fmt: skip
ARGUMENTS = 52

(
    J_ARGUMENTS, J_FIRST, J_END, J_INPUTS, J_KEPT, J_KEPT_COUNT, J_VALUES, J_VALUES_STEP,
    J_TALLIES, J_TALLIES_STEP, J_FLOATS, J_FLOATS_STEP, J_SCALES, J_UNITS,
) = range(14)  # fmt: skip
JOB = 14
"""A run of samples J_FIRST to J_END. J_INPUTS: address of pairs (address of an input's floats,
bytes of a sample). J_KEPT: address of the rows of K_ to keep, as int32 at J_VALUES, J_VALUES_STEP
bytes per sample. J_TALLIES: int64 pairs, or 0. J_FLOATS: the values times the float32 at J_SCALES,
J_UNITS per sample, or 0."""

C_LISTED, C_BLOCKS, C_FIRE, C_SCAN, C_SILENT, C_QUANTISE, C_STEPS, C_RUN = (
    0, 4, 8, 18, 19, 20, 22, 32,
)  # fmt: skip
"""Places in the table of kernels; the first two by number of 16-output groups - 1, the third too,
with one more for any number above 4, and all of these again WIDE places on; C_QUANTISE for scales
in general, then for powers of two; C_STEPS by kind of step."""
WIDE = 5

S_LIST, S_PREFIX, S_KEY_WORD, S_ROW_WORD, S_START, S_WORD = range(6)
"""One kernel row of a window on a source row. S_LIST, S_PREFIX: addresses of the row's list, and
of the prefix entry of the window's first column. S_KEY_WORD: what a listed key has to be moved by
to become the number of a weight block, at column 0; S_ROW_WORD: to become the number of a word of
the map. S_START: address of the first byte under the window; S_WORD: number of its weight block."""
SEGMENT = 6

(
    # a map of bytes: padded rows of words, with the list of the words that are not zero
    M_BASE, M_LIST, M_PREFIX, M_COUNTS,
    M_ROW_BYTES, M_LIST_BYTES, M_PREFIX_BYTES, M_PITCH, M_WORDS,
    M_HEIGHT, M_WIDTH, M_CHANNELS, M_TOP, M_LEFT, M_ROWS, M_COLUMNS, M_ZERO,
) = range(17)  # fmt: skip
MAP = 17
MAP_ADDRESSES = 4
"""The first columns of a map are addresses inside a work area."""

INPUT, SCATTER, GATHER, CHANNELWISE, SUM, LADDER, MAX, MOVE, PICK, NARROW = range(10)
"""Kinds of steps."""

(
    P_KIND, P_SOURCE, P_TARGET, P_CHARGE, P_OTHER,
    P_HEIGHT, P_WIDTH, P_CHANNELS,
    # window: P_TAPS int32 pairs (row, column) of the segments, in the padded source map
    P_ROW_STRIDE, P_STRIDE, P_TAPS, P_TAP_COUNT, P_SPAN, P_WORDS, P_TILES, P_TILE_COUNT,
    P_INIT, P_INIT_STEP, P_INIT_ROW, P_RATE, P_SHIFT, P_TOP, P_QUIET, P_DENSE, P_EXTRA, P_NONE,
    P_WIDE,  # 0, or WIDE where rates and shifts are float64
    # uses of the same columns by the other kinds
    P_A, P_B, P_C, P_D, P_E,
    P_PORT,  # number of the input
) = range(33)  # fmt: skip
STEP = 33

T_GROUPS, T_WEIGHT, T_FIRST = range(3)
"""A tile of output channels: number of 16-output groups, address of weights, first channel."""
TILE = 3

K_UNITS, K_INDEX, K_CHARGE, K_SIZE, K_MAP = range(5)
"""Where the values of a node are read: K_INDEX, int32 per unit, into a charge map of K_SIZE
integers, or into the bytes of a map (K_CHARGE = -1)."""
TAP = 5

Y_MAP, Y_ROWS, Y_COLUMNS, Y_WIDTH, Y_WORDS = range(5)
"""What is counted of a map: spikes (Y_ROWS = 0), or synapses: Y_ROWS and Y_COLUMNS are addresses
of the number of windows that meet a row and a column, Y_WIDTH outputs each; Y_WORDS the same as
Y_COLUMNS by the words of a padded row."""
TALLY = 5
