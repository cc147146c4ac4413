"""Names of the columns in the tables that the plan writes and compiled code reads."""

from __future__ import annotations

SPREAD, ELEMENT, FIRE, LADDER, MAX, MOVE, TELL, READ = range(8)
"""Kinds of steps.

SPREAD, ELEMENT, MOVE : changes of a map into charges, or into another map's next bytes.
FIRE, LADDER, MAX : new bytes of the touched sites, and what changed. TELL : only the latter.
READ : charges of a readout to integers and floats.
"""

(
    S_KIND, S_KERNEL,
    # what changed in the source map: sites as y << 16 | x; changes of site i are the entries
    # begins[i] to begins[i + 1] of words, two int16 differences each, and index, which two channels
    S_SITES, S_BEGINS, S_WORDS, S_INDEX, S_COUNT,
    # which targets each source row and column meets, and with which weights
    S_ROW_FIRST, S_ROW_TAPS, S_COLUMN_FIRST, S_COLUMN_TAPS, S_WEIGHT, S_TIMES,
    # the target's charges and the sites touched since it fired
    S_CHARGE, S_SITE_BYTES, S_WIDTH, S_FLAGS, S_TOUCHED, S_TOUCHED_COUNT,
    # a map that fires: bytes that its readers know, next bytes, and its changes
    S_VALUES, S_FRESH, S_PITCH, S_GROUPS, S_RATE, S_SHIFT, S_TOP,
    S_NEW_SITES, S_NEW_BEGINS, S_NEW_WORDS, S_NEW_INDEX, S_NEW_COUNT,
    # uses by the rarer kinds
    S_A, S_B, S_C, S_D, S_E, S_F,
) = range(37)  # fmt: skip
STEP = 40

(
    # an input map
    I_SITES, I_HEIGHT, I_WIDTH, I_CHANNELS, I_PITCH, I_LOW, I_HIGH, I_ZERO,
    I_FLOATS, I_PLACES, I_SCALE, I_OFFSET, I_PER_UNIT, I_NOW, I_HELD, I_FLAGS, I_TOUCHED,
    I_TOUCHED_COUNT, I_NEW_SITES, I_NEW_BEGINS, I_NEW_WORDS, I_NEW_INDEX, I_NEW_COUNT,
) = range(23)  # fmt: skip
INPUT = 24

(
    # what is common to a stream
    H_SIZE, H_INPUTS, H_STEPS, H_COUNTS, H_MOST, H_POLARITIES, H_ROWS, H_COLUMNS, H_OWN, H_PENDING,
    H_WAITED,
    # how the two arrays of events lie in memory: bytes of an event, then place and kind of t, x,
    # y, p
    H_ENTERING, H_LEAVING,
) = (*range(12), 21)  # fmt: skip
HEAD = 32

RECOMPUTE, UPDATED, INVALID = range(3)
"""What a push did."""
