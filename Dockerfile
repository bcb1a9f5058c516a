# plrc in a container. The image works on a CPU and, with NVIDIA's container toolkit on the host, on NVIDIA GPUs.
#
#     docker build -t plrc .
#     docker run --rm --ipc host -v "$PWD:/work" plrc pretrain --preset small_r18 --data photos/ --out runs/first
#     docker run --rm --ipc host --gpus all -v "$PWD:/work" plrc pretrain --preset small_r18 --data photos/ --out runs/first
#
# Loader processes pass images through shared memory, so give the container the host's (--ipc host), or --shm-size.
# PyTorch's wheels on the public registry need NVIDIA's libraries (several GB). For an image that only uses the CPU, name the
# index of CPU wheels that PyTorch's own installation page shows: docker build -t plrc --build-arg TORCH_INDEX=ADDRESS .
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
ARG TORCH_INDEX=

RUN pip install --no-cache-dir "torch>=2.11" torchvision ${TORCH_INDEX:+--index-url "$TORCH_INDEX"}
WORKDIR /plrc
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir .
RUN plrc doctor

# Files that a run writes belong to the caller with: docker run --user "$(id -u):$(id -g)"
ENV HOME=/tmp
WORKDIR /work
ENTRYPOINT ["plrc"]
CMD ["--help"]
