# CPU image: docker build -t uge . && docker run --rm -v "$PWD:/data" uge protect /data/images /data/out
# An index of CPU builds of PyTorch makes it smaller: --build-arg PIP_EXTRA_INDEX_URL=ADDRESS
FROM python:3.11-slim
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
COPY pyproject.toml README.md LICENSE constraints-cpu.txt ./
COPY src ./src
RUN pip install --no-cache-dir -c constraints-cpu.txt . \
    && useradd --create-home owner
USER owner
WORKDIR /data
ENTRYPOINT ["uge"]
CMD ["--help"]
