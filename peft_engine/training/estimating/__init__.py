"""What a job would take, measured: memory, seconds, and what every ``auto`` comes to.

memory     what a piece of work took at its highest, and what there is
spread     a number of seconds with what it may vary by
samples    a part of a split that stands for the whole
course     the steps of the run, without taking them
fitting    real steps on the largest batch; what to change where they do not fit
timing     real steps and evaluations of typical size
writing    the texts that evaluations write
measuring  all of it for one job, as an outcome
"""

from peft_engine.training.estimating.fitting import Trial
from peft_engine.training.estimating.measuring import Bounds, estimate
from peft_engine.training.estimating.outcome import Estimate, Memory, Seconds
from peft_engine.training.estimating.spread import Spread

__all__ = ["Bounds", "Estimate", "Memory", "Seconds", "Spread", "Trial", "estimate"]
