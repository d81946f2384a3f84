"""Samples of comparisons, built by hand: what terminal, Markdown and HTML have to show and to bear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from comparison_parts import (
    COLD,
    FIRST,
    LOSS,
    MEMORY,
    comparison,
    difference,
    estimate,
    interleaved,
    point,
    values,
)

from compute_router.compare.outcome import (
    Comparison,
    Contrast,
    Estimate,
    Metric,
    Point,
    Refusal,
    Result,
    Role,
    Standing,
    Success,
    Verdict,
    Waiver,
)
from compute_router.records import digest


def faster() -> Comparison:
    """Six blocks, all of one mind."""
    base, new = values("flash", 6, 412_300.0, 0.011), values("fused", 6, 463_900.0, 0.012)
    first, second = values("t1", 6, 71.0, 0.02), values("t2", 6, 70.4, 0.02)
    primary = estimate(
        base, new, paired=True, p=0.03125, test="sign-flip, exact, 64 of 64", p_adjusted=0.0625,
        verdict=Verdict.FASTER, beyond=True,
    )  # fmt: skip
    other = estimate(first, second, metric=FIRST, paired=True, p=0.5625, test="sign-flip, exact, 64 of 64",
                     p_adjusted=0.5625, needed=14)  # fmt: skip
    return comparison(
        interleaved("fused", base, new),
        [
            Contrast(
                base="flash",
                candidate="fused",
                result=Result.CONTROLLED,
                verdict=Verdict.FASTER,
                standing=Standing.CLAIM,
                sentence=f"fused is faster than flash: {primary.ratio:.3f}x tokens/s",
                differences=(
                    difference("code.commit", "4f9069d", "1230291", Role.VARIED, "V"),
                    difference("kernel.observed", "flash", "fused", Role.VARIED),
                    difference("compile.programs", "14", "11", Role.FOLLOWS),
                    difference("hw.observed.temp_c_max", "61", "63", Role.WARNS, "W"),
                ),
                primary=primary,
                others=(other,),
                success=Success(base=6, base_of=6, candidate=6, candidate_of=6, p=1.0),
                order="interleaved, 6 blocks",
                cannot=("anything about other shapes than gpt-small/bs8/seq1024",),
            )
        ],
        vary=("code.commit", "kernel.observed"),
        study={"id": "fused-kernel", "sha256": digest({"study": 1}), "n": "6"},
        notes=("the drift over the study is 0.2 %, less than the spread of one arm",),
    )


def refused() -> Comparison:
    """Warm against cold: the reason and the mend, and no verdict."""
    points = [point("warm", i, v) for i, v in enumerate(values("w", 3, 51_200.0, 0.01))]
    cold = {"startup": "cold_container_cached_image", "cache": "inductor empty -> miss", "parts": COLD}
    points += [point("cold", 3 + i, v, **cold) for i, v in enumerate(values("c", 3, 49_900.0, 0.01))]
    rules = (
        Refusal(
            code="COLD_VS_WARM",
            number="R03",
            what="warm started with cache=warm_same_key, cold with cache=empty",
            why="a cold cache changes what is compiled and when; discarding step 0 does not cure this",
            mend="`route warm train.py`, then repeat the cold runs; or use purpose cold-start",
        ),
        Refusal(
            code="TOO_FEW_RUNS",
            number="R07",
            what="3 and 3 runs",
            why="a verdict needs 6 of each arm: 4 let the test speak, 6 give a finite interval",
            mend="route study run study.toml",
            waivable=False,
        ),
        Refusal(
            code="NOT_INTERLEAVED",
            number="R09",
            what="every run of warm ended before the first of cold began",
            why="drift of the machine cannot be told from the difference",
            mend="let `route study run` order the runs",
        ),
    )
    refusing = Contrast(
        base="warm",
        candidate="cold",
        result=Result.REFUSED,
        sentence="warm and cold cannot be compared: COLD_VS_WARM, TOO_FEW_RUNS, NOT_INTERLEAVED",
        refusals=rules,
        differences=(
            difference("cache.inductor.state", "warm_same_key", "empty", Role.REFUSES),
            difference("cache.inductor.verdict", "hit", "miss", Role.REFUSES),
            difference(
                "startup.class", "warm_machine_fresh_process", "cold_container_cached_image", Role.REFUSES
            ),
            difference("hw.observed.driver", "570.86.10", "570.124.06", Role.WARNS, "W"),
        ),
        success=Success(base=3, base_of=3, candidate=3, candidate_of=3, p=1.0),
        order="base first",
        cannot=("which of them is faster, by any metric",),
    )
    return comparison(points, [refusing])


def _two(
    a: Sequence[float], b: Sequence[float], est: Estimate, contrast: dict[str, Any], **more: Any
) -> Comparison:
    given: dict[str, Any] = {
        "base": "flash",
        "candidate": "fused",
        "result": Result.CONTROLLED,
        "verdict": est.verdict,
        "standing": Standing.CLAIM,
        "primary": est,
        "differences": (difference("code.commit", "4f9069d", "1230291", Role.VARIED, "V"),),
        "success": Success(base=len(a), base_of=len(a), candidate=len(b), candidate_of=len(b), p=1.0),
        "order": f"interleaved, {len(a)} blocks",
        **contrast,
    }
    return comparison(interleaved("fused", a, b), [Contrast(**given)], vary=("code.commit",), **more)


def inconclusive() -> Comparison:
    """Eight blocks that do not agree: how many would be needed."""
    a, b = values("ia", 8, 412_300.0, 0.03), values("ib", 8, 414_900.0, 0.03)
    est = estimate(a, b, paired=True, p=0.6484, test="sign-flip, exact, 256 of 256", needed=46)
    sentence = f"~ it cannot be told whether fused is faster than flash: {est.ratio:.3f}x tokens/s"
    return _two(a, b, est, {"sentence": sentence, "cannot": ("which is faster", "that they are the same")})


def equivalent() -> Comparison:
    """Twenty of each and no difference that matters."""
    a, b = values("ea", 20, 412_300.0, 0.015), values("eb", 20, 412_500.0, 0.015)
    est = estimate(a, b, p=0.7380, test="Mann-Whitney, exact", verdict=Verdict.EQUIVALENT)
    sentence = f"fused and flash are equivalent within 2 %: {est.ratio:.3f}x tokens/s"
    return _two(a, b, est, {"sentence": sentence})


def three_arms() -> Comparison:
    """Two candidates against one base, one slower and one refused; a loss as a further metric."""
    flash, math_ = values("fa", 6, 412_300.0, 0.011), values("ma", 6, 292_000.0, 0.013)
    eager = values("ea3", 6, 240_000.0, 0.02)
    points = []
    for i, (a, b, c) in enumerate(zip(flash, math_, eager, strict=True)):
        row = [("flash", a), ("math", b), ("eager", c)]
        for place, (of, value) in enumerate(row[i % 3 :] + row[: i % 3]):
            points.append(point(of, 3 * i + place, value, block=i + 1))
    slower = estimate(flash, math_, paired=True, p=0.03125, test="sign-flip, exact, 64 of 64",
                      p_adjusted=0.09375, verdict=Verdict.SLOWER, beyond=True)  # fmt: skip
    loss = estimate(values("l1", 6, 2.104, 0.002), values("l2", 6, 2.101, 0.002), metric=LOSS, paired=True,
                    p=0.4375, test="sign-flip, exact, 64 of 64", p_adjusted=0.4375)  # fmt: skip
    memory = estimate(values("m1", 6, 61.2, 0.001), values("m2", 6, 74.9, 0.001), metric=MEMORY, paired=True,
                      p=0.03125, test="sign-flip, exact, 64 of 64", p_adjusted=0.09375,
                      verdict=Verdict.SLOWER, beyond=True)  # fmt: skip
    posture = Refusal(
        code="CONFOUNDED",
        number="R04",
        what="differs in compile.posture, but what varies is kernel.observed",
        why="two things that change at once cannot be told apart",
        mend="route compare --vary compile.posture --vary kernel.observed, for the joint effect alone",
    )
    return comparison(
        points,
        [
            Contrast(
                base="flash",
                candidate="math",
                result=Result.CONTROLLED,
                verdict=Verdict.SLOWER,
                standing=Standing.CLAIM,
                sentence=f"math is slower than flash: {slower.ratio:.2f}x tokens/s",
                differences=(difference("kernel.observed", "flash", "math", Role.VARIED),),
                primary=slower,
                others=(loss, memory),
                success=Success(base=6, base_of=6, candidate=6, candidate_of=6, p=1.0),
                order="interleaved, 6 blocks",
            ),
            Contrast(
                base="flash",
                candidate="eager",
                result=Result.REFUSED,
                sentence="flash and eager cannot be compared: CONFOUNDED",
                refusals=(posture,),
                differences=(
                    difference("kernel.observed", "flash", "math", Role.VARIED),
                    difference("compile.posture", "whole_graph", "eager", Role.REFUSES),
                ),
                success=Success(base=6, base_of=6, candidate=6, candidate_of=6, p=1.0),
                order="interleaved, 6 blocks",
                cannot=("what the compile posture alone does",),
            ),
        ],
        vary=("kernel.observed",),
        study={"id": "kernels", "sha256": digest({"study": 3}), "n": "6"},
    )


def waived() -> Comparison:
    """A rule set aside with a reason, and one set aside in vain: exploratory."""
    a, b = values("wa", 6, 412_300.0, 0.01), values("wb", 6, 431_000.0, 0.01)
    because = "one machine was free, and only for one night"
    rule = Refusal(
        code="NOT_INTERLEAVED",
        number="R09",
        what="every run of flash ended before the first of fused began",
        why="drift of the machine cannot be told from the difference",
        mend="let `route study run` order the runs",
        waived=True,
        because=because,
    )
    est = estimate(a, b, p=0.0022, test="Mann-Whitney, exact", verdict=Verdict.FASTER, beyond=True)
    points = [point("flash", i, v) for i, v in enumerate(a)]
    points += [point("fused", 6 + i, v) for i, v in enumerate(b)]
    contrast = Contrast(
        base="flash",
        candidate="fused",
        result=Result.CONTROLLED,
        verdict=Verdict.FASTER,
        standing=Standing.EXPLORATORY,
        sentence=f"fused is faster than flash: {est.ratio:.3f}x tokens/s",
        refusals=(rule,),
        differences=(difference("code.commit", "4f9069d", "1230291", Role.VARIED, "V"),),
        primary=est,
        success=Success(base=6, base_of=6, candidate=6, candidate_of=6, p=1.0),
        order="base first",
        cannot=("that the difference is not the machine's drift",),
    )
    waivers = (
        Waiver(rule="NOT_INTERLEAVED", because=because, used=True),
        Waiver(rule="COLD_VS_WARM", because="copied from another call"),
    )
    return comparison(points, [contrast], waivers=waivers, vary=("code.commit",))


def failures() -> Comparison:
    """Three of ten runs of one arm failed: counted, and the verdict on speed withheld."""
    a, b = values("xa", 10, 412_300.0, 0.01), values("xb", 10, 431_000.0, 0.01)
    broken = {2: "out of memory", 5: "exit code 1", 8: "preempted"}
    points = []
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        points.append(point("flash", 2 * i, x, block=i + 1))
        if i in broken:
            state = "preempted" if i == 8 else "failed"
            why = f"it {state}: {broken[i]}"
            points.append(point("fused", 2 * i + 1, None, block=i + 1, state=state, why=why))
        else:
            points.append(point("fused", 2 * i + 1, y, block=i + 1))
    lost = {"evidence": "anecdote", "counted": False, "why": "no end marker (PARTIAL_RECEIPT)"}
    points.append(point("flash", 20, 405_000.0, **lost))
    est = estimate(a, [y for i, y in enumerate(b) if i not in broken])
    contrast = Contrast(
        base="flash",
        candidate="fused",
        result=Result.CONTROLLED,
        sentence="no verdict on speed: fused succeeded in 7 of 10 runs, flash in 11 of 11",
        differences=(difference("code.commit", "4f9069d", "1230291", Role.VARIED, "V"),),
        primary=est,
        success=Success(base=11, base_of=11, candidate=7, candidate_of=10, p=0.0902),
        order="interleaved, 10 blocks",
        cannot=("which is faster, while they differ in how often they succeed",),
    )
    return comparison(points, [contrast], vary=("code.commit",))


def anecdote() -> Comparison:
    """One run of each."""
    est = estimate([412_300.0], [463_900.0])
    rule = Refusal(
        code="TOO_FEW_RUNS",
        number="R07",
        what="1 and 1 run",
        why="how much runs differ by themselves cannot be told from one of each",
        mend="route study run study.toml",
        waivable=False,
    )
    sentence = "no verdict: one run of each; fused showed 1.125x the tokens/s of flash"
    contrast = {
        "verdict": None,
        "standing": Standing.ANECDOTE,
        "sentence": sentence,
        "refusals": (rule,),
        "order": "base first",
    }
    return _two([412_300.0], [463_900.0], est, contrast)


def surfaces() -> Comparison:
    """A serverless start against a reserved machine: only time to first result may be compared."""
    a, b = values("sa", 6, 62.0, 0.04), values("sb", 6, 231.0, 0.09)
    away = {"startup": "cold_image", "surface": "serverless", "backend": "cloud", "parts": COLD}
    points = []
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        near = point("reserved", 2 * i, 412_000.0, block=i + 1)
        far = point("serverless", 2 * i + 1, 409_000.0, block=i + 1, **away)
        points += [
            Point(**{**_plain(p), "figures": {"time_to_first_result_s": v}}) for p, v in ((near, x), (far, y))
        ]
    est = estimate(a, b, metric=FIRST, paired=True, p=0.03125, test="sign-flip, exact, 64 of 64",
                   verdict=Verdict.SLOWER, beyond=True)  # fmt: skip
    contrast = Contrast(
        base="reserved",
        candidate="serverless",
        result=Result.CONTROLLED,
        verdict=Verdict.SLOWER,
        standing=Standing.CLAIM,
        label="surface claim, end to end",
        sentence=f"serverless is slower than reserved: {est.ratio:.2f}x the time to the first result",
        differences=(
            difference("surface", "reserved", "serverless", Role.VARIED),
            difference("startup.class", "warm_machine_fresh_process", "cold_image", Role.FOLLOWS),
            difference("storage.data", "local_nvme", "bucket_fuse", Role.FOLLOWS),
        ),
        primary=est,
        success=Success(base=6, base_of=6, candidate=6, candidate_of=6, p=1.0),
        order="interleaved, 6 blocks",
        cannot=("which is faster once it runs: their start classes differ",),
    )
    return comparison(points, [contrast], vary=("surface",), metric="time_to_first_result_s")


def _plain(record: Any) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__struct_fields__}


def many(n: int = 100) -> Comparison:
    """`n` runs of each arm; one in forty failed."""
    a, b = values("na", n, 412_300.0, 0.02), values("nb", n, 420_600.0, 0.02)
    points = []
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        for place, (name, value) in enumerate((("flash", x), ("fused", y))):
            order = 2 * i + place
            start = "warm_container" if i % 3 == 0 else "warm_machine_fresh_process"
            points.append(point(name, order, None if order % 40 == 39 else value, block=i + 1, startup=start))
    est = estimate(
        a, b, p=0.000001, test="Mann-Whitney, normal with ties", verdict=Verdict.FASTER, beyond=False
    )
    contrast = Contrast(
        base="flash",
        candidate="fused",
        result=Result.EQUAL,
        verdict=Verdict.FASTER,
        standing=Standing.CLAIM,
        sentence=f"fused is faster than flash: {est.ratio:.3f}x tokens/s",
        primary=est,
        success=Success(base=n, base_of=n, candidate=n - n // 20, candidate_of=n, p=0.06),
        order=f"interleaved, {n} blocks",
    )
    return comparison(points, [contrast])


SCRIPT = "<script>document.title='owned'</script><img src=x onerror=alert(1)>"
ATTRIBUTE = '"><svg onload=alert(1)><b style="x'
TURNED = "safe\u202egnp.exe\u2066 \x1b[31mred\x07\u200f \ud800 a\x00b"
LONG = "very-long-name-without-any-place-to-break-" * 40


def hostile() -> Comparison:
    """Names and texts that try to be markup, to turn writing round, to move a cursor, to have no end."""
    base, new = values("ha", 6, 1e-300, 0.01), [1e300, 2e300, 3e300, 1e-5, float("inf"), 5e300]
    text = {"hardware": SCRIPT, "storage": LONG, "cache": TURNED, "backend": ATTRIBUTE, "name": SCRIPT}
    points = [point(SCRIPT, i, v, startup=ATTRIBUTE, ref=f"../{SCRIPT}", **text) for i, v in enumerate(base)]
    points += [
        point(TURNED, 6 + i, v, startup=LONG, caveats=(SCRIPT, LONG), **text) for i, v in enumerate(new)
    ]
    points.append(point(LONG, 13, None, why=f"{SCRIPT} {TURNED}", parts={SCRIPT: 2.0, LONG: 3.0}, **text))
    odd = Metric(name=SCRIPT, unit=ATTRIBUTE, definition=TURNED)
    rule = Refusal(
        code=SCRIPT, number=ATTRIBUTE, what=TURNED, why=LONG, mend=f"`{SCRIPT}` `unclosed {TURNED}"
    )
    est = Estimate(
        metric=odd, n_base=6, n_candidate=6, paired=False, base=1e-300, candidate=float("inf"),
        base_range=(0.0, float("nan")), ratio=float("inf"), interval=(0.0, float("inf")),
        shift=float("nan"), shift_interval=(-1.0, 3.0), p=float("nan"), test=ATTRIBUTE,
        verdict=Verdict.FASTER, needed=10**30, notes=(SCRIPT, LONG),
    )  # fmt: skip
    contrasts = [
        Contrast(
            base=SCRIPT,
            candidate=other,
            result=result,
            verdict=Verdict.FASTER,
            standing=Standing.ANECDOTE,
            sentence=f"{other} and {SCRIPT}",
            label=ATTRIBUTE,
            refusals=(rule,),
            differences=(
                difference(SCRIPT, ATTRIBUTE, TURNED, Role.REFUSES),
                difference(LONG, LONG, "", Role.WARNS),
            ),
            primary=est,
            order=TURNED,
            cannot=(SCRIPT, LONG),
        )
        for other, result in ((TURNED, Result.CONTROLLED), (LONG, Result.REFUSED))
    ]
    return comparison(
        points,
        contrasts,
        refusals=(rule,),
        waivers=(Waiver(rule=SCRIPT, because=TURNED),),
        vary=(SCRIPT, LONG),
        study={SCRIPT: LONG, "id": TURNED},
        notes=(SCRIPT, LONG),
        metric=SCRIPT,
    )


def nothing() -> Comparison:
    """No receipts at all."""
    rule = Refusal(
        code="NOTHING_TO_COMPARE",
        number="R00",
        what="no receipt was given",
        why="a comparison needs two arms",
        mend="name receipts or runs: route receipt list shows those there are",
        waivable=False,
    )
    return Comparison(version="0.1.0", refusals=(rule,))


def bare() -> Comparison:
    """A record with nothing in it."""
    return Comparison()


SAMPLES: dict[str, Callable[[], Comparison]] = {
    "faster": faster,
    "refused": refused,
    "inconclusive": inconclusive,
    "equivalent": equivalent,
    "three_arms": three_arms,
    "waived": waived,
    "failures": failures,
    "anecdote": anecdote,
    "surfaces": surfaces,
    "many": many,
    "hostile": hostile,
    "nothing": nothing,
    "bare": bare,
}
"""Every sample by its name."""
