"""The network taken apart: what is read must be what is there."""

import pytest
import torch
from torch import nn

from labutils.errors import UnknownNameError, UsageError
from labutils.measure import anatomy, complexity
from labutils.models import architectures, zoo
from labutils.show import figures
from labutils.show.figures import anatomy as anatomy_figures


@pytest.fixture(scope="module")
def large():
    return architectures.find("mobilenet_v3_large").build(16).eval()


def named(stages, **wanted):
    return [
        s.name for s in stages if all(getattr(s, key) == value for key, value in wanted.items())
    ]


def test_stages_are_those_of_the_papers_table(large):
    stages = anatomy.stages(large, 64).stages
    assert len(named(stages, kind="inverted residual")) == 15
    assert [s.name[9:] for s in stages if s.activation == "ReLU"] == list("123456")
    assert [s.name[9:] for s in stages if s.gated] == ["4", "5", "6", "11", "12", "13", "14", "15"]
    assert [s.expanded for s in stages[1:16]] == [
        16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960,
    ]  # fmt: skip
    assert stages[0].output == (16, 32, 32)
    assert (stages[4].kernel, stages[4].stride, stages[4].shortcut) == (5, 2, False)
    assert (stages[-1].name, stages[-1].output) == ("classifier", (16,))


def test_predecessor_has_no_gate_and_no_hard_swish():
    stages = anatomy.stages(architectures.find("tv:mobilenet_v2").build(None), 64).stages
    assert len(named(stages, kind="inverted residual")) == 17
    assert not any(s.gated or s.activation == "Hardswish" for s in stages)


def test_walk_sees_shapes_in_order_of_execution(large):
    steps = anatomy.walk(large, "features.4", 128).steps
    depthwise = next(step for step in steps if "depthwise" in step.what)
    assert depthwise.entered == (72, 32, 32)
    assert depthwise.left == (72, 16, 16)
    assert depthwise.what == "Conv2d 5x5 depthwise, stride 2"
    assert steps[-1].left == (40, 16, 16)
    assert any(step.name.endswith("scale_activation") for step in steps)


def test_nothing_is_left_on_the_module(large):
    large.train()
    anatomy.walk(large, "features.4", 64)
    anatomy.times(large, 64, repeats=1)
    assert large.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in large.modules())
    large.eval()


def test_times_cover_the_stages_and_restore_the_threads(large):
    threads = torch.get_num_threads()
    times = anatomy.times(large, 64, repeats=2)
    assert torch.get_num_threads() == threads
    assert list(times.seconds) == [s.name for s in anatomy.stages(large, 64).stages]
    assert all(seconds > 0 for seconds in times.seconds.values())
    assert sum(times.share(name) for name in times.seconds) == pytest.approx(1)
    with pytest.raises(UnknownNameError):
        times.share("features.99")


def test_text_and_html_say_the_same(large):
    for report in (anatomy.stages(large, 64), anatomy.walk(large, "features.4", 64)):
        assert "features.4" in str(report)
        assert "features.4" in report._repr_html_()


def test_refusals():
    with pytest.raises(UsageError, match="features"):
        anatomy.stages(nn.Sequential(nn.Conv2d(3, 4, 1)), 16)
    with pytest.raises(UnknownNameError):
        anatomy.walk(nn.Sequential(nn.Conv2d(3, 4, 1)), "1", 16)


def test_a_network_is_drawn_at_its_own_size():
    model = zoo.load("mobilenet_v3_small")
    side = model.preprocessing.size
    assert side != 224 and f"at {side} px" in figures.architecture(model).alt
    assert f"at {side // 4} px" in figures.inverted_residual(model, "features.2").alt


def test_figures_say_what_to_see(large):
    network = complexity.count(large, (1, 3, 64, 64))
    picture = anatomy_figures.weight_work_time(network, anatomy.times(large, 64, repeats=1))
    assert "the largest share of the parameters is in classifier" in picture.alt
    assert "0.14 from swish" in anatomy_figures.hard_and_smooth().alt
    other = complexity.count(nn.Sequential(nn.Conv2d(3, 4, 1)), (1, 3, 8, 8))
    with pytest.raises(UsageError):
        anatomy_figures.weight_work_time(other, anatomy.times(large, 64, repeats=1))


def test_what_goes_into_the_layers_of_a_class():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.gate = nn.ReLU(inplace=True), nn.Hardsigmoid()

        def forward(self, x):
            return x * self.gate(self.act(x - 1))

    network = Net().train()
    x = torch.tensor([[-1.0, 4.0]])
    assert [*anatomy.inputs_of(network, nn.Hardsigmoid, x)] == ["gate"]
    found = anatomy.inputs_of(network, nn.Module, x)
    torch.testing.assert_close(found["gate"], torch.tensor([[0.0, 3.0]]))
    # before the layer wrote over it
    torch.testing.assert_close(found["act"], torch.tensor([[-2.0, 3.0]]))
    assert network.training and not network.gate._forward_pre_hooks
    assert not found["gate"].is_inference()  # to be computed with as any other
    with pytest.raises(UsageError, match="Net has no Dropout"):
        anatomy.inputs_of(network, nn.Dropout, x)
