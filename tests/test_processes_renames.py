"""What version 0.1 called otherwise in diffusion, interpolants and sampling: names, methods,
fields, and the dicts it wrote."""

import importlib
import warnings
from dataclasses import dataclass, replace

import pytest
import torch
from helpers.processes import close, linear_model, normal

from minisora.core.renames import OLD_NAMES
from minisora.diffusion import GaussianDiffusion, Objective
from minisora.interpolants import Interpolant, objective_from_dict
from minisora.processes.schedules import NoiseSchedule, beta_schedule

# `__all__` of the three modules in version 0.1
OLD = {
    "diffusion": """
        draw betas zero_terminal_snr one_of like Schedule Objective posterior gaussian_kl
        discretised_nll         per_sample bound predicted reverse full_bound Diffusion
        toy_points ToyNet fit_toy respace ancestral_step         ddim_step walk_back""",
    "interpolants": """
        path_coefficients logit_normal shift_time time_slip Interpolant objective_from_dict""",
    "sampling": """
        euler heun midpoint rk4 ode_solver grid guided_channels guide velocity_of ode_iter
        adaptive         adaptive_iter diffusion_strength sde_grid sde_terms sde_iter ddim_iter
        latent_shape home Counted sample_iter         states_of indices sample settle invert
        Likelihood bits_per_dimension trace_probes divergence log_likelihood
        with_divergence""",
}
ALL = [(module, name) for module, names in OLD.items() for name in names.split()]


@pytest.mark.parametrize("module,name", ALL)
def test_every_name_of_version_0_1_is_still_there(module, name):
    module = importlib.import_module(f"minisora.{module}")
    if name in vars(module):
        assert vars(module)[name] is not None
        return
    with pytest.warns(DeprecationWarning, match=f"{name} is now minisora"):
        assert callable(getattr(module, name))


def test_the_table_names_nothing_that_is_not_there():
    for module in OLD:
        for new in OLD_NAMES[f"minisora.{module}"].values():
            home, _, name = new.partition(":")
            assert callable(vars(importlib.import_module(home))[name]), new


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return call()


@pytest.mark.parametrize("o", [GaussianDiffusion(), Interpolant("gvp", "noise")], ids=str)
def test_methods_answer_to_their_old_names(o):
    data = normal(1)
    noise = normal(2)
    t = torch.tensor([0.2, 0.5, 0.9])
    model = linear_model()
    x = o.add_noise(data, noise, t)
    out = o.raw_prediction(model, x, t)
    pairs = quietly(
        lambda: [
            (o.mix(data, noise, t), x),
            (o.output(model, x, t), out),
            (o.split(out, x, t)[0], o.to_data_and_noise(out, x, t)[0]),
            (o.flow(out, x, t), o.to_velocity(out, x, t)),
            (o.times(t), o.sample_times(t)),
            (torch.tensor(o.interval), torch.tensor(o.time_range)),
        ]
    )
    assert all(torch.equal(old, new) for old, new in pairs)
    for name in ("mix", "output", "split", "flow", "times", "interval"):
        with pytest.warns(DeprecationWarning, match=name):
            getattr(o, name)


def test_more_of_gaussian_diffusion_and_its_schedule():
    o = GaussianDiffusion(variance="learned-range")
    x = normal(1)
    t = torch.tensor([0.2, 0.5, 0.9])
    model = linear_model(out=8)
    with pytest.warns(DeprecationWarning, match="noise_schedule"):
        chain = o.chain
    assert isinstance(chain, NoiseSchedule) and chain is o.noise_schedule
    old = quietly(lambda: (chain.bar, chain.beta, chain.index(t), o.floor, chain.kind))
    new = chain.alphas_cumprod, chain.betas, chain.timestep(t), o.min_posterior_variance, "linear"
    assert all(torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(old, new))
    out, extra = quietly(lambda: o.outputs(model, x, t))
    close(torch.cat([out, extra], 1), model(x, t))
    assert quietly(lambda: NoiseSchedule(kind="cosine")) == NoiseSchedule(schedule="cosine")


FIELDS = dict(weight="velocity", time="uniform", delta=3.0, steady=0.5)
TODAY = dict(
    loss_weighting="velocity",
    time_distribution="uniform",
    temporal_diff_weight=3.0,
    jerk_weight=0.5,
)


def test_fields_by_their_old_names():
    with pytest.warns(DeprecationWarning) as said:
        o = Interpolant("gvp", **FIELDS)
    words = sorted(str(w.message).partition(" is now ")[2].partition("=")[0] for w in said)
    assert words == sorted(TODAY), "each is said once"
    assert o == Interpolant("gvp", **TODAY)
    assert quietly(lambda: [getattr(o, k) for k in FIELDS]) == list(FIELDS.values())
    assert quietly(lambda: replace(o, weight="none")).loss_weighting == "none"
    with pytest.warns(DeprecationWarning, match="loss_weighting="):
        assert GaussianDiffusion(weight="vlb").loss_weighting == "vlb"
    with pytest.raises(TypeError, match="weigth"):
        Interpolant(weigth="none")


def test_a_subclass_takes_old_fields_too():
    @dataclass(frozen=True)
    class Mine(Interpolant):
        frames: int = 2

    o = quietly(lambda: Mine("gvp", frames=3, **FIELDS))
    assert o == Mine("gvp", frames=3, **TODAY) and o.frames == 3
    assert quietly(lambda: o.steady) == 0.5
    assert Mine.upgrade(dict(FIELDS, frames=3)) == dict(TODAY, frames=3)
    assert Mine.from_dict(dict(FIELDS, objective="Mine", path="gvp", frames=3)) == o

    class Plain(Interpolant):
        pass

    assert quietly(lambda: Plain(steady=1.0)).jerk_weight == 1.0


@pytest.mark.parametrize(
    "body,new",
    [
        (dict(times=lambda self, u: u), "sample_times"),
        (dict(mix=lambda self, data, noise, t: data), "add_noise"),
        (dict(flow=lambda self, output, x, t: output), "to_velocity"),
        (dict(split=lambda self, output, x, t: (x, x)), "to_data_and_noise"),
        (dict(output=lambda self, model, x, t: x), "raw_prediction"),
        (dict(interval=(0.1, 0.9)), "time_range"),
        (dict(interval=property(lambda self: (0.1, 0.9))), "time_range"),
        (dict(weight="velocity"), "loss_weighting"),
        (dict(__annotations__=dict(steady=float)), "jerk_weight"),
    ],
)
def test_a_subclass_that_overrides_an_old_name_is_told(body, new):
    "Nobody would call it: better an error where the class is made than another loss."
    (old,) = body if "__annotations__" not in body else body["__annotations__"]
    with pytest.raises(TypeError, match=f"Mine.{old}: '{old}' is now '{new}'; rename it"):
        type("Mine", (Interpolant,), body)
    if new in ("sample_times", "time_range"):
        with pytest.raises(TypeError, match=f"'{old}' is now '{new}'"):
            type("Mine", (Objective,), body)


def test_other_classes_that_are_subclassed_say_it_too():
    with pytest.raises(TypeError, match="'floor' is now 'min_posterior_variance'"):
        type("NoFloor", (GaussianDiffusion,), dict(floor=0.0))
    with pytest.raises(TypeError, match="'beta' is now 'betas'"):
        type("Weak", (NoiseSchedule,), dict(beta=beta_schedule() / 100))
    weak = type("Weak", (NoiseSchedule,), dict(betas=beta_schedule() / 100))()
    assert weak.alphas_cumprod[-2] > 0.9  # and by its new name it counts


def test_weights_keeps_its_name_and_is_honoured():
    class Heavy(Interpolant):
        def weights(self, t):
            return torch.full_like(t, 7.0)

    data = normal(1)
    noise = normal(2)
    t = torch.tensor([0.2, 0.5, 0.9])
    terms = Heavy().loss(linear_model(), data, None, noise, t)
    assert torch.equal(terms["loss"], 7 * terms["mse"])


WRITTEN = [
    (
        {
            "objective": "Diffusion",
            "steps": 500,
            "schedule": "cosine",
            "prediction": "v",
            "variance": "fixed-small",
            "weight": "min-snr",
            "gamma": 3.0,
            "zero_snr": False,
            "vlb_weight": 1.0,
        },
        GaussianDiffusion(500, "cosine", "v", loss_weighting="min-snr", gamma=3.0),
    ),
    (
        {
            "objective": "Interpolant",
            "path": "linear",
            "prediction": "data",
            "weight": "velocity",
            "time": "logit-normal",
            "mean": 0.0,
            "std": 1.4,
            "shift": 6.0,
            "max_weight": 25.0,
            "delta": 4.0,
            "steady": 0.05,
        },
        Interpolant(
            prediction="data",
            loss_weighting="velocity",
            std=1.4,
            shift=6.0,
            max_weight=25.0,
            temporal_diff_weight=4.0,
            jerk_weight=0.05,
        ),
    ),
]


@pytest.mark.parametrize("written,o", WRITTEN, ids=["Diffusion", "Interpolant"])
def test_what_version_0_1_wrote_is_read_without_a_word(written, o):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert objective_from_dict(written) == type(o).from_dict(written) == o
        fields = {k: v for k, v in written.items() if k != "objective"}
        assert type(o)(**o.upgrade(fields)) == o
        assert o.upgrade(vars(o)) == vars(o)  # what is up to date stays
