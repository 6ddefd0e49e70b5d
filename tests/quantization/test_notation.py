"""Quantizer sets written as text."""

from __future__ import annotations

import pytest

from nnabla_dqa import BWN, SAWB, TWN, FullPrecision, MinMax
from nnabla_dqa.quantization.notation import EXAMPLES, QuantizerSet, parse_quantizers

SETS = {
    "minmax:2,4,8": (MinMax(2), MinMax(4), MinMax(8)),
    "sawb:2": (SAWB(2),),
    "bwn/twn/float": (BWN(), TWN(), FullPrecision()),
    "twn/minmax:4,8": (TWN(), MinMax(4), MinMax(8)),
    "float": (FullPrecision(),),
    "fp": (FullPrecision(),),
    "FullPrecision": (FullPrecision(),),
    " MinMax:2, 4 ": (MinMax(2), MinMax(4)),
    "BWN / SAWB:3,8": (BWN(), SAWB(3), SAWB(8)),
    "minmax:1@0": (MinMax(1, channel_axis=0),),
    "twn/float@-1": (TWN(channel_axis=-1), FullPrecision()),
    "minmax:2/sawb:2": (MinMax(2), SAWB(2)),
    "sawb:2,4,channel_axis=0": (SAWB(2, channel_axis=0), SAWB(4, channel_axis=0)),
    "sawb:channel_axis=null,2": (SAWB(2),),
    "twn:channel_axis=1": (TWN(channel_axis=1),),
    "min-max:2": (MinMax(2),),
}


@pytest.mark.parametrize("text", SETS)
def test_what_a_notation_stands_for(text):
    assert parse_quantizers(text) == QuantizerSet(SETS[text], False)


def test_every_example_of_the_messages_is_one():
    for example in EXAMPLES.split("  "):
        assert parse_quantizers(example).quantizers


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_per_channel_takes_the_axis_of_the_layer(axis):
    chosen = parse_quantizers("bwn/twn/minmax:4/float@channel")
    assert chosen.per_channel
    assert chosen.quantizers == (BWN(), TWN(), MinMax(4), FullPrecision())
    assert chosen.for_axis(axis) == (
        BWN(channel_axis=axis),
        TWN(channel_axis=axis),
        MinMax(4, channel_axis=axis),
        FullPrecision(),
    )


def test_a_written_axis_is_not_replaced():
    assert parse_quantizers("minmax:2@1").for_axis(0) == (MinMax(2, channel_axis=1),)
    assert parse_quantizers("minmax:2").for_axis(0) == (MinMax(2),)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "'' is none of float, bwn, "),
        ("minmx:2", "'minmx' is none of float, bwn, "),
        ("minmax", "minmax takes bit widths, as in minmax:2,4"),
        ("bwn:1", "bwn takes no bit widths"),
        ("float:", "float takes no bit widths"),
        ("float:,", "float takes no bit widths"),
        ("minmax:", "'' is not a number of bits"),
        ("minmax:2,,4", "'' is not a number of bits"),
        ("minmax:two", "'two' is not a number of bits"),
        ("minmax:2.0", "'2.0' is not a number of bits"),
        ("minmax:channel_axis=0", "minmax takes bit widths, as in minmax:2,4"),
        ("minmax:bits=2", "minmax takes bit widths, as in minmax:2,4"),
        ("minmax:2,bits=2", "bit widths are written as in minmax:2,4"),
        ("minmax:2,clip=3", "MinMax has no field 'clip'; its fields: bits, channel_axis"),
        ("minmax:2,channel_axis=x", "channel_axis='x' is neither None nor a whole number"),
        ("minmax:2,channel_axis=0,channel_axis=1", "field 'channel_axis' is there twice"),
        ("minmax:2,=0", "'=0' is not field=value"),
        ("minmax:9", "MinMax: bits=9 is not a whole number from 1 to 8"),
        ("sawb:1", "SAWB: bits=1 is not a whole number from 2 to 8"),
        ("bwn//float", "'' is none of float"),
        ("minmax:2@", "after @ comes 'channel' or the number of an axis"),
        ("minmax:2@out", "after @ comes 'channel' or the number of an axis"),
        ("minmax:2@0.5", "after @ comes 'channel' or the number of an axis"),
    ],
)
def test_what_is_none_is_refused_with_the_reason(text, reason):
    with pytest.raises(ValueError) as caught:
        parse_quantizers(text)
    message = str(caught.value)
    assert message.startswith(f"quantizers {text!r}: ")
    assert reason in message
    assert "\n" not in message
    assert "@" in reason or EXAMPLES in message
