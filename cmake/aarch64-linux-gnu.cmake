# Cross build of the C tests for aarch64, run by qemu (Debian: gcc-aarch64-linux-gnu
# libc6-dev-arm64-cross qemu-user-static):
#   cmake -S . -B build/aarch64 -DAIMO_BUILD_TESTS=ON -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64-linux-gnu.cmake
#   qemu-aarch64-static -L /usr/aarch64-linux-gnu build/aarch64/aimo_tests
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
