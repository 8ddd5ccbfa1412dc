"""What to change in a run that does not fit.

Enters: what `precompile` returned. Leaves: options to set, in words, the likeliest remedy first.
"""

from __future__ import annotations

from distill_sbs.precompiling.report import Precompilation


def advise(
    result: Precompilation, too_large: list[str], state: float, available: float | None
) -> list[str]:
    """What to set, the likeliest remedy first; nothing where everything fits.

    Args:
      result: the precompilation.
      too_large: which of "training" and "decoding" do not fit.
      state: bytes of parameters and optimizer state on a device.
      available: bytes that a program may use on a device; None where nobody says.
    """
    if not too_large:
        return []
    mesh = result["mesh"]
    data, model = mesh["slice"] * mesh["data"], mesh["model"]
    state_is_large = available is not None and state > 0.5 * available
    advice = []
    splits_state = "FSDP = True: splits parameters and optimizer state over the data axis"
    can_split_state = not result["fsdp"] and mesh["data"] > 1
    if can_split_state and state_is_large:
        advice.append(splits_state)
    elif state_is_large and result["fsdp"]:
        advice.append(
            "a larger TOPOLOGY: parameters and optimizer state are split over all chips already"
        )
    if "training" in too_large and not (state_is_large and result["fsdp"]):
        if result["remat_policy"] != "full":
            advice.append(
                "STUDENT_OVERRIDES = {…, 'remat_policy': 'full'}: recomputes activations"
                + (", or 'minimal': most of them" if result["remat_policy"] == "none" else "")
            )
        microbatches = 2 * result["num_microbatches"]
        if result["rows"] % (data * microbatches) == 0:
            advice.append(f"NUM_MICROBATCHES = {microbatches}: half the activations at a time")
    if mesh["data"] > 1 and mesh["data"] % 2 == 0:
        advice.append(
            f"NUM_MODEL_PARTITIONS = {2 * model}: more chips share each copy of the parameters"
        )
    if can_split_state and not state_is_large:
        advice.append(splits_state)
    if too_large == ["decoding"] and result["decode"] is not None:
        advice.insert(0, f"EVAL_BATCH_SIZE below {result['decode']['rows']}")
    if not any(text.startswith("a larger") for text in advice):
        advice.append("a larger TOPOLOGY")
    return advice
