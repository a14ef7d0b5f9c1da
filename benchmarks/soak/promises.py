"""What each part of the soak promises."""

from __future__ import annotations

from typing import Any

Figures = dict[str, Any]

MAX_WAIT_FOR_AN_ERROR_S = 5.0
MAX_AWAY_S = 10.0
MAX_GROWTH = 0.02
MAX_FD_GROWTH = 2
MAX_LATENCY_RATIO = 1.5
MAX_REFUSAL_MS = 50.0
MAX_GAP_S = 1.0
MAX_KEPT_MIB = 400
MAX_FIRST_TOKEN_MS = 2000.0
MIN_SHARE = 0.45


def broken_promises(part: str, figures: Figures) -> list[str]:
    """Returns the promises that the figures of a part break."""
    promises: dict[str, bool] = {"no descriptors leak": figures["fds"][1] <= figures["fds"][0] + MAX_FD_GROWTH}
    match part:
        case "kill":
            promises |= {
                "every request ends readably": not figures["problems"],
                "every request ends": figures["complete"] + figures["told_of_an_error"]
                == figures["rounds"] * figures["streams"],
                "errors come at once": figures["longest_wait_for_an_error_s"] <= MAX_WAIT_FOR_AN_ERROR_S,
                "it is back soon": figures["longest_away_s"] <= MAX_AWAY_S,
                "each kill is one restart": figures["restarts"] == figures["rounds"],
            }
        case "overload":
            calm, storm = figures["inter_token_p99_ms"]
            promises |= {
                "all are admitted or refused": not figures["other"],
                "the admitted are served": not figures["admitted_incomplete"],
                "the refused are told when to come back": not figures["refused_without_retry_after"],
                "refusing is quick": (figures["refusal_median_ms"] or 0) < MAX_REFUSAL_MS,
                "the admitted are served as fast": storm <= MAX_LATENCY_RATIO * calm,
            }
        case "malformed":
            promises |= {
                "no 5xx": not figures["server_errors"],
                "no traceback": not figures["tracebacks"],
                "no restart": not figures["restarts"],
            }
        case "hostile":
            promises |= {
                "nothing keeps a loop": not any(kind["blocked"] for kind in figures["kinds"].values()),
                "no stream stops": all(kind["longest_stream_gap_s"] < MAX_GAP_S for kind in figures["kinds"].values()),
                "/health answers": all(kind["longest_health_s"] < MAX_GAP_S for kind in figures["kinds"].values()),
                "the server does not keep what it took": figures["kept_mib"] < MAX_KEPT_MIB,
                "no traceback": not figures["tracebacks"],
                "no restart": not figures["restarts"],
            }
        case "memory":
            promises |= {
                "all succeed": not figures["problems"],
                "the server does not grow": figures["server_growth"] <= MAX_GROWTH,
                "the engine does not grow": figures["engine_growth"] <= MAX_GROWTH,
            }
        case "tenants":
            waits = {name: load["first_token_worst_ms"] for name, load in figures["loads"].items()}
            promises |= {
                "every probe is answered": not any(load["unanswered"] for load in figures["loads"].values()),
                "first tokens come soon": max(waits.values()) <= MAX_FIRST_TOKEN_MS,
                "who wants as much gets as much": MIN_SHARE
                <= (figures["share_where_both_want_all"] or 0)
                <= 1 - MIN_SHARE,
            }
    return [promise for promise, holds in promises.items() if not holds]
