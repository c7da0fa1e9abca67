"""Who is missing at the start, and who is gone later, is said by its number, on every process."""

import socket
import threading

import pytest

from jaxlm.parallel.rollcall import ProcessLost, RollCall, difference
from jaxlm.parallel.start import late


@pytest.fixture
def address():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{free.getsockname()[1]}"


def together(address, indices, count, timeout_s=10.0, silence_s=60):
  """{index: RollCall or the sentence}; {index: sentence of a later loss}."""
  out, lost = {}, {index: [] for index in indices}

  def one(index):
    try:
      out[index] = RollCall.join(
        address, index, count, timeout_s=timeout_s, silence_s=silence_s, lost=lost[index].append
      )
    except ProcessLost as error:
      out[index] = str(error)

  threads = [threading.Thread(target=one, args=(index,)) for index in indices]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return out, lost


@pytest.mark.parametrize(
  "present, said",
  [
    ([0], "processes 1, 2, 3 of 4 did not join within 0.5 s (coordinator {}): are they running?"),
    ([0, 1, 3], "process 2 of 4 did not join within 0.5 s (coordinator {}): is it running?"),
    ([2], "process 0 of 4 did not join within 0.5 s (coordinator {}): is it running?"),
  ],
)
def test_everybody_who_came_hears_who_did_not(address, present, said):
  out, _ = together(address, present, 4, timeout_s=0.5)
  assert all(out[index].startswith(said.format(address)) for index in present), out


def test_the_loss_of_one_is_heard_by_all_others_and_a_farewell_is_no_loss(address):
  out, lost = together(address, range(4), 4)
  out[3].leave()
  out[2].lines[0].socket.shutdown(socket.SHUT_RDWR)  # what the kernel does for a process that dies
  for index in (0, 1):
    assert out[index].wait_for_loss(10)
    assert lost[index][0].startswith("process 2 of 4 has ended or cannot be reached")
  assert not any("process 3" in sentence for sentences in lost.values() for sentence in sentences)


def test_silence_is_a_loss(address):
  out, lost = together(address, range(3), 3, silence_s=1)
  out[2].leaving = True  # ends its beat; its line stays open, as that of a stopped process does
  assert out[0].wait_for_loss(10) and out[1].wait_for_loss(10)
  assert (
    lost[0][0].startswith("process 2 of 3 has not been heard of for 1 s (JAXLM_LOST_TIMEOUT_S)")
    and lost[0] == lost[1]
  )


FACTS = {
  "seed": "3",
  "train.save_every": "4",
  "--workdir": "/runs/a",
  "the revision": "1234567",
  "the data's data": "ab",
}


@pytest.mark.parametrize("key", FACTS)
def test_a_difference_is_said_on_all_with_both_values(address, key):
  out, lost = together(address, range(3), 3)
  said, mine = {}, {0: FACTS, 1: FACTS, 2: FACTS | {key: "other"}}
  threads = [
    threading.Thread(target=lambda i=i: said.update({i: out[i].differ(mine[i])})) for i in range(3)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert said == dict.fromkeys(
    range(3),
    f"the processes of this run differ: {key} is {FACTS[key]} in process 0 and other in "
    f"process 2; start all of them with the same command, code and data",
  )
  assert not any(lost.values())


def test_equal_facts_are_no_difference_and_an_absent_one_is():
  assert difference(FACTS, dict(FACTS), 1) is None
  assert difference({"seed": "3"}, {"optimizer.b1": "0.9"}, 1).startswith(
    "the processes of this run differ: seed is 3 in process 0 and absent in process 1 (and optimizer.b1); start all"
  )


def test_two_processes_of_the_same_number_are_refused(address):
  out, _ = together(address, [0, 1, 1], 3)
  assert "says it is process 1 of 3, as another one does, in a run of 3" in out[0]


def test_a_stranger_on_the_port_is_ignored(address):
  host, port = address.split(":")
  stop = threading.Event()

  def knock():
    while not stop.wait(0.05):
      try:
        socket.create_connection((host, int(port)), timeout=1).sendall(b"GET / HTTP/1.1\r\n\r\n")
      except OSError:
        pass

  stranger = threading.Thread(target=knock)
  stranger.start()
  try:
    out, _ = together(address, range(2), 2)
  finally:
    stop.set()
    stranger.join()
  assert all(isinstance(found, RollCall) for found in out.values()), out


def test_a_barrier_that_timed_out_names_the_process():
  # As said by jax 0.10.2 when process 1 of 2 slept.
  text = (
    "DEADLINE_EXCEEDED: Barrier timed out. Id: save::0. This usually happens because a task triggered the barrier too "
    "early or too slowly. Please look at the task logs (both timed out and first task) to debug further.\n# of tasks "
    "that reached the barrier: 1/2.\nThe first task at the barrier: 0. Some timed out task names:\n1\n\n\nRPC: "
    "/xla.coordination.CoordinationService/Barrier [type.googleapis.com/tensorflow.CoordinationServiceError='']"
  )
  assert late(text, 2).startswith("process 1 of 2 did not reach the barrier 'save' in time")
  assert late("INTERNAL: something else", 2) is None
