"""What a GPU would make of the kernels, found out without one: resources, tensor-core use, memory traffic."""
