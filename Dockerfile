# plrc in a container. DEVICE is cpu, or cuda for NVIDIA GPUs (the host needs NVIDIA's container toolkit).
#
#     docker build -t plrc .
#     docker run --rm --ipc host -v "$PWD:/work" plrc pretrain --preset small_r18 --data photos/ --out runs/first
#     docker build -t plrc-cuda --build-arg DEVICE=cuda .
#     docker run --rm --ipc host --gpus all -v "$PWD:/work" plrc-cuda pretrain --preset small_r18 --data photos/ --out runs/first
#
# Loader processes pass images through shared memory, so give the container the host's (--ipc host), or --shm-size.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim
ARG DEVICE=cpu

# PyTorch's wheels on the public registry need NVIDIA's libraries (several GB); those of the cpu index do not.
RUN if [ "$DEVICE" = cpu ]; then \
        pip install --no-cache-dir "torch>=2.11" torchvision --index-url https://download.pytorch.org/whl/cpu; \
    fi
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
